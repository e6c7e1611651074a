"""Starting a command again (`autoresume=true`): its folder is found by its options, and a run that has finished is not repeated.

The folder is `outputs/auto/NAME-DIGEST`. NAME is the run's `name` (by default that of the data), DIGEST a hash of its
configuration, except for what says where to read and write it (IGNORED). So the same command finds its folder, also on another
day or as another job, and any option that changes begins a new run in a folder of its own. Data that have changed are refused as
with `ckpt=`. For a multirun (`-m`) the options of the command count, too, those with several values in the order in which
they were given, since that order numbers its runs.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from etude.core.ranks import rank
from etude.report.files import write_atomically
from etude.run import recipes

IGNORED = ("hydra", "ckpt", "outputs", "cache_dir", "autoresume", "stop_at")
OPTIONS = "options.json"  # in the folder of a run of a multirun
FINISHED = "finished.json"  # in the folder of a run that has come to its end


class Finished(NamedTuple):
    """The end of a run: its optimizer step, and the value of its monitored metric."""

    step: int
    value: float | None


def stable_folder(config: DictConfig, *, sweep: bool = False) -> Path:
    """Returns the folder of the run, or the sweep, of this configuration with its `hydra` node."""
    settings: Any = OmegaConf.to_container(config, resolve=False)
    kept = {key: value for key, value in settings.items() if key not in IGNORED}
    if sweep:  # what is swept stands in the command only
        kept["sweep"] = _swept(config.hydra.overrides.task)
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]
    name = config.hydra.runtime.choices.get("data") if "${" in str(settings["name"]) else settings["name"]
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in str(name))
    return Path(config.outputs) / "auto" / f"{plain}-{digest}{'_sweep' if sweep else ''}"


def _swept(options: Iterable[str]) -> list[str]:
    """Returns the options that say what a multirun makes: sorted, but those with several values, which number its runs, last."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    kept = [option for option in options if recipes.key(option) not in IGNORED]
    several = [option for option in kept if OverridesParser.create().parse_override(option).is_sweep_override()]
    return [*sorted(set(kept) - set(several)), *several]


def keep_options(folder: Path, options: list[str], *, found_again: bool) -> None:
    """Keeps the options of a run of a multirun in its folder.

    found_again: whether the run goes on with what is in the folder (`autoresume=true`).

    Raises: ValueError if it would go on with a run of other options.
    """
    path, kept = folder / OPTIONS, [option for option in options if recipes.key(option) not in IGNORED]
    begun = has_begun(folder) or (folder / FINISHED).is_file() or any(folder.glob("*/checkpoints"))  # the latter of phases
    if found_again and begun and path.is_file():
        earlier = json.loads(path.read_text())
        if sorted(earlier) != sorted(kept):
            raise ValueError(
                f"{folder} holds the run of {' '.join(earlier)}, not of {' '.join(kept)}; give the options of -m in the same "
                "order, or another hydra.sweep.dir="
            )
    if rank() == 0:
        write_atomically(path, json.dumps(kept) + "\n")


def continued(cfg: DictConfig, folder: Path) -> DictConfig:
    """Returns the configuration with `ckpt` set to the run's folder, if the run has begun already.

    Raises: ValueError if the command names a checkpoint, too.
    """
    if cfg.ckpt:
        raise ValueError(f"autoresume=true finds its run by itself; leave ckpt={cfg.ckpt} out, or autoresume")
    if has_begun(folder):
        cfg.ckpt = str(folder)
    return cfg


def has_begun(folder: Path) -> bool:
    """Returns whether a run has left a checkpoint in its folder."""
    from etude.core.kept_checkpoints import checkpoints_of

    return bool(checkpoints_of(folder / "checkpoints"))


def finished(folder: Path) -> Finished | None:
    """Returns the end of the run in a folder, which is told; None if it has not come to its end."""
    path = folder / FINISHED
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        end = Finished(int(found["step"]), None if found["value"] is None else float(found["value"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({type(error).__name__}); remove it, and the run's end is made again") from error
    print(f"{folder}: this run finished at step {end.step}; another option begins a new one", file=sys.stderr)
    return end


def mark_finished(folder: Path, *, step: int, value: Any) -> None:
    """Writes down that the run in a folder has come to its end."""
    end = {"step": step, "value": None if value is None else repr(float(value))}
    write_atomically(folder / FINISHED, json.dumps(end) + "\n")


def begin(folder: Path) -> None:
    """Describes the environment in a run's folder, and removes the mark of an end: a run that goes on has not finished."""
    from etude.report.environment import write_environment

    if rank() == 0:
        write_environment(folder)
        (folder / FINISHED).unlink(missing_ok=True)


def requeue(number: int) -> None:
    """Asks Slurm to start this job again after its warning, SIGUSR1, and tells what came of it; does nothing elsewhere.

    number: the signal that has ended the run.
    """
    if (told := _requeued(number)) is not None:
        print(told, file=sys.stderr)


def _requeued(number: int) -> str | None:
    """Returns what came of asking Slurm; None where it is not asked.

    number: the signal that has ended the run.
    """
    job, task = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if number != signal.SIGUSR1 or not job:
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{task}" if array and task else job
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"scontrol requeue {name} failed ({error}); submit the same job again, and it goes on"
    if done.returncode:
        why = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        return f"scontrol requeue {name} failed ({why}); submit the same job again, and it goes on"
    return f"Slurm starts job {name} again, which goes on here"
