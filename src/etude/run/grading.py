"""The program grade: grades audio files with a trained grader."""

import sys

from omegaconf import DictConfig

from etude.core.called import program
from etude.run.command import one_line_errors
from etude.run.folder import run_folder
from etude.run.parts import finder, instantiate, load_task
from etude.run.quiet import quiet_lightning


@one_line_errors
def grade(cfg: DictConfig) -> None:
    """Grades the files of `audio`; writes a CSV and report.html."""
    from etude.core.grades import Grades

    quiet_lightning()
    path = finder(cfg.outputs)(cfg.run or "last", "run", Grades)
    task, _ = load_task(path)
    if not isinstance(task, Grades):
        raise ValueError(
            f"run={cfg.run} holds a {type(task).__name__}, which grades no audio; give a run of `{program('train')} task=grader`"
        )
    folder = run_folder()
    instantiate(cfg.grading)(task=task, folder=folder)
    print(f"results: {folder / 'report.html'}", file=sys.stderr)
