"""Builds the parts of a run from its configuration: task, techniques, data, trainer; and a task from a checkpoint."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from etude.core.called import program
from etude.run.tracking import build_loggers, showing_callbacks

if TYPE_CHECKING:
    from etude.core.task import Task
    from etude.sweeps.trial import RunningTrial

FITTING = {
    "discriminator": "style_transfer",
    "objective": "representation",
    "algorithm": "few_shot or few_shot_generation",
}  # group -> task


def instantiate(node: Any, **extra: Any) -> Any:
    """Builds the object that `_target_` names; constructors get plain lists and dictionaries."""
    import hydra.utils

    return hydra.utils.instantiate(node, **extra, _convert_="all")


def load_task(path: Path) -> tuple["Task", DictConfig]:
    """Returns the trained task of a checkpoint, and the configuration of its run. Raises: ValueError for an unusable file."""
    import torch
    from hydra.utils import get_class

    from etude.core.building import no_larger_than
    from etude.core.checkpoint_files import load_checkpoint, unusable_checkpoint

    checkpoint = load_checkpoint(path)
    recipe = OmegaConf.create(checkpoint["etude"]["recipe"])
    made: Any = get_class(recipe.task._target_)
    try:
        with no_larger_than(checkpoint["state_dict"], path=path):
            task = build_task(recipe, **made.constructor_arguments_from(checkpoint["etude"]))
            task.phases.restore_modules(task, checkpoint["etude"])
        task.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # a file may be malformed in any way; `load_checkpoint` has checked that it runs no foreign code
        raise unusable_checkpoint(path, error) from error
    task.eval()
    task.to("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(task, made)
    return task, recipe


@contextmanager
def told_of_settings() -> Iterator[None]:
    """Turns the TypeError of a part that lacks a setting, since it does not fit the task, into a ValueError with the remedy."""
    try:
        yield
    except TypeError as error:
        found = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if found is None:
            raise
        if found[1] == "StyleDataModule":
            raise ValueError(
                f"this task reads scores (it sets data.{found[2]}), and data= is audio; choose data=folder, say, or a task of "
                "audio: style_transfer, mel_representation, classifier, grader"
            ) from error
        raise ValueError(
            f"{found[1]} has no setting {found[2]}, which the task, the data or an option sets; if you set it, leave it out, "
            "else choose another model= for this task, such as tiny, or another tokenizer=, such as remi"
        ) from error


def build_task(cfg: DictConfig, **parts: Any) -> "Task":
    """Builds the task with its networks, optimizer and schedule; `parts` are constructor arguments that come from the data.

    Raises: ValueError for data with defects and a task that does not learn them; as `build_with`.
    """
    from hydra.utils import get_object

    names = ("model", "discriminator", "objective", "algorithm", "optimizer", "scheduler")
    takes = inspect.signature(get_object(cfg.task._target_)).parameters
    if "defects" in parts and "defects" not in takes:
        raise ValueError(
            f"data.defects={list(parts['defects'])} would have {cfg.task._target_.rpartition('.')[2]} trained on spoilt audio; "
            "it is for task=grader, set data.defects=null"
        )
    builders = {name: instantiate(cfg[name]) for name in names if cfg.get(name) is not None}
    with told_of_settings():
        task: Task = build_with(cfg.task, **builders, **parts)
    return task


def check_fit(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Checks, before any data are read, that the task can use the other groups and the options of the data.

    overrides: the options of the command line.

    Raises: ValueError for a discriminator, objective or algorithm of a task that has none, for holes in the pieces of a task that
        fills none in, for leaving out control tokens where there are none, and for what the task's `check_data`, the
        algorithm or the optimizer refuses.
    """
    from hydra.utils import get_object

    kind = get_object(cfg.task._target_)
    takes = inspect.signature(kind).parameters
    for name, fitting in FITTING.items():
        if cfg.get(name) is not None and name not in takes:
            raise ValueError(f"{name}= names a network for task={fitting}; {kind.__name__} takes none: leave it out")
    data: Any = OmegaConf.to_container(cfg.data, resolve=True)
    if data.get("infill") and "infills" not in takes:
        raise ValueError(
            f"data.infill={data['infill']} would hide passages that a language model learns to fill in; {kind.__name__} fills "
            "none in: leave it out"
        )
    if data.get("controls") == [] and any(option.startswith("data.control_dropout=") for option in overrides):
        raise ValueError(
            f"data.control_dropout={data['control_dropout']} leaves out control tokens, and there are none (data.controls=[]): "
            "leave it out"
        )
    kind.check_data(data)
    if cfg.get("algorithm") is not None:
        instantiate(cfg.algorithm)(dim=2)  # refuses settings
    check_optimizer(cfg)


def check_sampling(sampling: Any, task: "Task") -> None:
    """Raises ValueError for samples that this task can't make; sampling: the function that writes them, with its options."""
    wanted = get_type_hints(inspect.unwrap(sampling.func)).get("task")
    if isinstance(wanted, type) and not isinstance(task, wanted):
        raise ValueError(
            f"sampling= asks for samples of another kind of task than {type(task).__name__}; leave it out, which takes those of "
            "the task, if it has any"
        )


def check_optimizer(cfg: DictConfig) -> None:
    """Builds the optimizer for a matrix. Raises: ValueError for what it refuses, such as a learning rate below 0."""
    import torch

    build = instantiate(cfg.optimizer)
    try:
        build([{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}])
    except Exception as error:
        from pytorch_optimizer.base.exception import NegativeLRError  # a second to import, which AdamW does without

        if not isinstance(error, ValueError | NegativeLRError):
            raise
        raise ValueError(f"the optimizer refuses one of the optimizer.* settings: {error}; set another") from error


def build_with(node: DictConfig, **parts: Any) -> Any:
    """Builds the object that `node` names; of `parts` it passes those that the constructor has as parameters.

    Raises: ValueError if a required argument is missing, for example since the data do not fit the task.
    """
    from hydra.utils import get_object

    parameters = inspect.signature(get_object(node._target_)).parameters
    given = {name: part for name, part in parts.items() if name in parameters}
    named = {p.name: p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in given and n not in node]
    if missing:
        article = "an" if missing[0][0] in "aeiou" else "a"
        raise ValueError(
            f"{node._target_.rpartition('.')[2]} needs {article} {missing[0]}, which the chosen data or groups don't provide; "
            f"`{program('train')} --help` shows which task= and data= go together"
        )
    # not through Hydra's keywords, which turn dataclasses into dictionaries
    return instantiate(node, _partial_=True)(**given)


def build_technique(node: DictConfig, outputs: str = "outputs") -> Any:
    """Builds a technique; one that reads another run's model has the parameters `find` (see `_finder`) and `load`."""
    return build_with(node, find=finder(outputs), load=load_task)


def finder(outputs: str) -> Callable[..., Path]:
    """Returns a function from (a checkpoint, a folder or `last`; its option; for `last`, a protocol that the run's task
    must meet) to a path.

    For a folder and for `last` it is the run's best checkpoint, since such a model is used and not trained further.
    """
    from etude.core.checkpoint_search import find_checkpoint

    return lambda ckpt, option, offers=None: find_checkpoint(ckpt, outputs, option=option, offers=offers, best=True)


def check_mels(task: Any, data: DictConfig, path: Path) -> None:
    """Raises ValueError if a trained model reads other mels than the data that are configured would give.

    path: of the model's checkpoint, for the message.
    """
    from etude.core.protocols import HasMelContract

    node = data.get("contract")
    trained = task.contract if isinstance(task, HasMelContract) else None
    if trained is not None and node is not None and (difference := trained.difference(instantiate(node))):
        raise ValueError(f"ckpt={path}: it reads other mels: {difference}; leave the options of data.contract out")


def prepare_data(node: DictConfig, tokenizer: Callable[..., Any] | None, folder: Path, *, outputs: str = "outputs") -> Any:
    """Builds the data module, reads files that are not cached yet, and lists unreadable files in the run's folder.

    outputs: the folder of runs, among which `data.grader=last` looks.
    """
    from etude.report.files import write_atomically

    made = {} if tokenizer is None else {"tokenizer": tokenizer}
    with told_of_settings():
        datamodule = build_with(node, **made, find=finder(outputs), load=load_task)
        datamodule.prepare_data()
    if rows := datamodule.quarantine:
        lines = ["\t".join(row) for row in [("file", "piece", "reason"), *rows]]
        write_atomically(folder / "quarantine.tsv", "\n".join([*lines, ""]))
    return datamodule


def build_trainer(
    cfg: DictConfig, folder: Path, techniques: list[Any], *, step: int | None = None, trial: "RunningTrial | None" = None,
    new_settings: bool = False,
) -> Any:  # fmt: skip
    """Builds Lightning's trainer with the run's loggers, techniques, checkpoint callbacks and progress bar.

    step: optimizer steps that a continued run has made; None for a new run. trial: of a sweep. new_settings: see `NewSettings`.
    """
    from etude.core.best_checkpoints import BestCheckpoint, kept_best
    from etude.core.checkpoint_io import AtomicCheckpointIO
    from etude.core.checkpoints import LastCheckpoint
    from etude.core.hash_log import hash_log
    from etude.core.optimizer_settings import NewSettings
    from etude.report.progress import RunProgress
    from etude.run.launched import refuse_several_devices

    refuse_several_devices(cfg.trainer.devices, trial=trial is not None)
    loggers = build_loggers(cfg, folder, step=step)
    checkpoints = folder / "checkpoints"
    callbacks = [
        *techniques,
        *hash_log(folder / "hashes.tsv", cfg.hash_every),
        BestCheckpoint(checkpoints, "best", monitor=cfg.monitor, mode=cfg.monitor_mode, enable_version_counter=False),
        *kept_best(checkpoints / "best.ckpt", monitor=cfg.monitor, mode=cfg.monitor_mode, keep=cfg.keep_best),
        LastCheckpoint(path=checkpoints / "last.ckpt", every_n_steps=cfg.save_every, keep=cfg.keep_last, stop_at=cfg.stop_at),
        RunProgress(),
        *showing_callbacks(cfg, folder, loggers),
    ]
    if trial is not None:
        from etude.sweeps.callback import TrialCallback

        callbacks.append(TrialCallback(trial))
    if new_settings:
        callbacks.append(NewSettings())
    return instantiate(
        cfg.trainer, logger=loggers or False, callbacks=callbacks, plugins=[AtomicCheckpointIO()], default_root_dir=str(folder)
    )
