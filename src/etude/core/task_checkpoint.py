"""What a task adds to a checkpoint, and takes from one from which training goes on."""

from typing import Any

from etude.core import lightning
from etude.core.adapters import merge_adapters, unmerge_adapters
from etude.core.any_task import AnyTask
from etude.core.averaging import use_training_weights


def save(task: AnyTask, checkpoint: dict[str, Any]) -> None:
    """Writes the entry "etude": counters, recipe, phases, terms to be logged; merges adapters into the weights.

    Lightning calls the task after its callbacks, so averages have replaced the weights before.
    """
    checkpoint["etude"] = {
        "batches_trained": task.batches_trained,
        "steps_trained": task.steps_trained,
        "recipe": task.recipe,
        "phases": task.phases.state_dict(),
        "logged": task.logged_terms(),
    }
    merge_adapters(task, checkpoint)


def load(task: AnyTask, checkpoint: dict[str, Any]) -> None:
    """Takes from a checkpoint what `save` wrote; its weights become those that were trained, not their average."""
    saved = checkpoint["etude"]
    task.batches_trained = saved["batches_trained"]
    # older checkpoints hold only Lightning's count
    task.steps_trained = saved["steps_trained"] if "steps_trained" in saved else checkpoint["global_step"]
    task.latest_terms = saved.get("logged", {})  # older checkpoints have none
    task.phases.load(task, checkpoint)
    unmerge_adapters(task, checkpoint)
    if "trained_weights" in checkpoint:  # the run had ended: `state_dict` holds its `final_weights`
        checkpoint["state_dict"] = checkpoint["trained_weights"]
    if lightning.trainer_of(task) is not None and task.trainer.state.fn == "fit":
        use_training_weights(task, checkpoint, {technique.state_key for technique in task.composition.techniques})
