"""Sections of training: what techniques against forgetting call one task, after which they hold on to what was learned."""

from etude.core.any_task import AnyTask


def check_every(name: str, every: int | None) -> None:
    """Raises: ValueError if the option `every` of a technique is below 1."""
    if every is not None and every < 1:
        raise ValueError(f"technique.{name}.every is {every}, must be at least 1 step, or null to go by the phases of the run")


def ends_now(task: AnyTask, every: int | None) -> bool:
    """Whether a section ends with the step just made: `every` steps since the phase or the section before began."""
    return every is not None and (task.steps_trained - task.phases.start_step) % every == 0


def check_sections(task: AnyTask, name: str, every: int | None, *, carried: int = 0, size: int | None = None) -> None:
    """Checks that a run has more than one section; for `on_fit_start`, when its phases are known.

    carried: sections of an earlier run that this one holds on to. size: of a memory, which all sections share.

    Raises: ValueError if there is a single section, or a share of the memory would be less than one piece.
    """
    who, phases = type(task).__name__, len(task.phases.sequence)
    if size is not None:
        if every is not None and task.trainer.max_steps < 1:
            raise ValueError(f"technique {name}: every needs the length of the run of {who} in steps; set max_steps")
        cut = 0 if every is None else task.trainer.max_steps // every + 1  # and the one under way
        sections = carried + max(1, phases + cut)
        if sections > size:
            raise ValueError(
                f"technique {name}: a memory of {size} is less than one piece for each of {sections} phases or sections "
                f"of {who}; set technique.{name}.size higher"
            )
    if carried:
        return
    if every is None and phases < 2:
        raise ValueError(
            f"technique {name} holds on to what earlier phases taught, and this run of {who} has a single phase; "
            f"choose stage=genres, give technique.stages.stages=[...], or set technique.{name}.every to a number of steps"
        )
