"""The programs reproduce, which repeats a run from its folder, and compare-hashes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from etude.run import recipes
from etude.run.command import one_line_errors
from etude.run.folder import run_folder
from etude.run.heads import set_targets

# settings that do not change what is trained, or that are compared otherwise
ANYWHERE = ("ckpt", "outputs", "cache_dir", "logger", "autoresume", "stop_at", "weights", "threads", "trial")
SET_BY_REPRO = "trainer.deterministic"
MACHINE = ("python", "system", "cpu", "gpu", "cuda")  # lines of environment.txt, besides the versions of LIBRARIES
LIBRARIES = ("torch", "numpy", "torchaudio", "pytorch-lightning", "pytorch_optimizer", "torchdata")


@one_line_errors
def reproduce(cfg: DictConfig) -> None:
    """Trains the run of a folder again, and compares weights, optimizer state and metrics; exits with 1 where they differ."""
    from etude.core.checkpoint_files import load_checkpoint
    from etude.core.checkpoint_search import find_checkpoint
    from etude.report.environment import environment

    if not cfg.run:
        raise ValueError("run= is missing; give the folder of a run, such as run=outputs/2026-01-31/12-00-00_chorales")
    folder, new = Path(cfg.run).expanduser(), run_folder()
    path = find_checkpoint(str(folder), cfg.outputs, option="run")
    saved = load_checkpoint(path)
    kept = _settings(_whole_run(folder))
    options = _options(saved, kept, path)
    _check_data(folder, _check_options(options, kept), kept)
    other = _differences_of_machine((folder / "environment.txt").read_text(), environment())
    if other:
        print(f"another environment ({other}): compared within a relative difference of {cfg.tolerance}", file=sys.stderr)
    _train(options, folder, new, step=saved["global_step"])
    again = load_checkpoint(new / "checkpoints" / "last.ckpt")
    found = _compare(folder, new, saved, again, tolerance=cfg.tolerance if other else 0.0)
    for line in found:
        print(line)
    if found:
        print(f"differs: {new} from {folder}", file=sys.stderr)
        sys.exit(1)
    how = f"within {cfg.tolerance}" if other else "bit for bit"
    what = "weights" if other else "weights, optimizer, loops, techniques"
    if not other and stopped_in_validation(saved):
        what = "weights, optimizer"
        print(f"{folder} was stopped within a validation, which {new} has completed: only what precedes it is compared")
    print(f"the same {how} at step {saved['global_step']}: {what} and metrics of {folder} and {new}")


def _whole_run(folder: Path) -> Path:
    """Returns the configuration of a run that has one for all its steps. Raises: ValueError for another."""
    path = folder / "config.yaml"
    if not path.is_file():
        phases = sorted(each.parent for each in folder.glob("*/config.yaml"))
        hint = f"give one of its phases, such as run={phases[0]}" if phases else "give the folder of a run"
        raise ValueError(f"run={folder}: there is no config.yaml; {hint}")
    if earlier := sorted(folder.glob("config_*.yaml")):
        raise ValueError(f"run={folder} was continued with other options ({earlier[0].name}); it can't be repeated")
    ckpt = _settings(path).get("ckpt")
    if ckpt and Path(ckpt).is_file() and folder.resolve() not in Path(ckpt).resolve().parents:
        raise ValueError(f"run={folder} goes on from {ckpt} of another run; repeat that one")
    return path


def _settings(path: Path) -> DictConfig:
    """Returns a run's configuration. Raises: ValueError for a file that holds none."""
    found = OmegaConf.load(path)
    if not isinstance(found, DictConfig):
        raise ValueError(f"{path} is not the configuration of a run")
    return found


def _options(saved: dict[str, Any], kept: Any, path: Path) -> list[str]:
    """Returns the options with which the run of a checkpoint was trained; weights that it started from by their path."""
    options = recipes.taken_over(saved["etude"]["recipe"].get("overrides", []), path)
    options = [option for option in options if recipes.key(option) not in ("autoresume", "stop_at", "weights", "ckpt")]
    return [*options, f"weights={json.dumps(str(kept.weights))}" if kept.get("weights") else "weights=null"]


def _check_options(options: list[str], kept: Any) -> DictConfig:
    """Returns the configuration that the options make today. Raises: ValueError for a setting that was another in the run."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    command = HydraConfig.instance().cfg
    composed = hydra.compose("train", overrides=recipes.spelled_out(options), return_hydra_config=True)
    with open_dict(composed):
        composed.hydra.runtime.output_dir = str(run_folder())
    HydraConfig.instance().set_config(composed)
    with open_dict(composed):
        del composed["hydra"]
    set_targets(composed, options)
    now: Any = OmegaConf.to_container(composed, resolve=True)
    HydraConfig.instance().cfg = command
    said, then = {recipes.key(option) for option in options}, OmegaConf.to_container(kept)
    assert isinstance(then, dict)
    for key in then:
        if key not in ANYWHERE and (changed := _changed(then[key], now.get(key), str(key), said)):
            raise ValueError(f"{changed}: the defaults have changed since; check out the commit in the run's environment.txt")
    made: DictConfig = OmegaConf.create(now)
    return made


def _changed(then: Any, now: Any, key: str, said: set[str]) -> str | None:
    """Returns the first setting that is another now, without those of the options `said`."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = (_changed(then[name], now.get(name), f"{key}.{name}", said) for name in then if name != "cache_dir")
        return next((one for one in found if one), None)
    if key in said or key == SET_BY_REPRO:
        return None
    return None if then == now else f"{key} was {then} in that run and is {now} here"


def _check_data(folder: Path, cfg: DictConfig, kept: Any) -> None:
    """Raises: ValueError that names the first file that is not what the run read."""
    from etude.run.inputs import FILE, NAME, compare_inputs, inputs
    from etude.run.parts import instantiate, prepare_data

    if not (folder / NAME).is_file():
        print(f"{folder} has no {NAME}, as runs of earlier versions; whether its data have changed is not known", file=sys.stderr)
        return
    cfg.data.cache_dir = kept.data.cache_dir if Path(kept.data.cache_dir).is_dir() else cfg.data.cache_dir
    tokenizer = instantiate(cfg.tokenizer) if cfg.get("tokenizer") is not None else None
    datamodule = prepare_data(cfg.data, tokenizer, run_folder())
    before = (folder / NAME).read_text()
    named = [line.split("\t")[1] for line in before.splitlines() if line.startswith(f"{FILE}\t")]
    files = {option: Path(path) for option, _, path in (name.partition("=") for name in named) if Path(path).is_file()}
    if changed := compare_inputs(before, inputs(datamodule, files)):
        raise ValueError(f"run={folder} can't be repeated: {changed}")


def _differences_of_machine(then: str, now: str) -> str:
    """Returns in what the environments differ that results may depend on; "" if in nothing."""

    def facts(text: str) -> dict[str, str]:
        lines = [line.partition(": ") for line in text.splitlines() if ": " in line]
        versions = [line.partition("==") for line in text.splitlines() if "==" in line]
        found = {key: value for key, _, value in lines if key in MACHINE}
        return found | {name: version for name, _, version in versions if name in LIBRARIES}

    one, two = facts(then), facts(now)
    return ", ".join(f"{key}: {one[key]} and {two.get(key)}" for key in one if one[key] != two.get(key))


def _train(options: list[str], folder: Path, new: Path, *, step: int) -> None:
    """Trains with these options up to a step in the folder `new`, with the run's number of threads; its messages are shown.

    Raises: ValueError if it fails.
    """
    lines = (folder / "environment.txt").read_text().splitlines()
    threads = next((line.partition(": ")[2] for line in lines if line.startswith("torch threads: ")), "")
    places = [f"hydra.run.dir={json.dumps(str(new))}", f"stop_at={step}"]
    cache = _settings(folder / "config.yaml").get("cache_dir")
    if cache and Path(cache).is_dir() and "cache_dir" not in map(recipes.key, options):
        places.append(f"cache_dir={json.dumps(str(cache))}")
    if threads.isdecimal() and "threads" not in map(recipes.key, options):
        places.append(f"threads={threads}")
    command = [sys.executable, "-m", "etude.run.cli", "train", *options, *places]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads or os.environ.get("OMP_NUM_THREADS", "")})
    if done.returncode not in (0, 128 + signal.SIGINT) or not (new / "checkpoints" / "last.ckpt").is_file():
        raise ValueError(f"run={folder} could not be repeated: training ended with exit code {done.returncode}, see above")


def stopped_in_validation(saved: Any) -> bool:
    """Returns whether a checkpoint was written within a validation; a run that goes on from it begins with that validation."""
    return "random_state" in saved.get("callbacks", {}).get("LastCheckpoint", {})


def _compare(folder: Path, new: Path, saved: Any, again: Any, *, tolerance: float) -> list[str]:
    """Returns a line for each kind of result that differs: the first step, and what differs there."""
    from etude.core.differences import COMPARED, compare_checkpoints, compare_metrics
    from etude.core.hash_log import NAME, compare_hashes

    found, last = {}, saved["global_step"] - 1
    parts, last = (COMPARED[:2], last - 1) if stopped_in_validation(saved) else (COMPARED, last)
    if all((place / NAME).is_file() for place in (folder, new)) and not tolerance:
        found["hashes"] = compare_hashes(folder / NAME, new / NAME)
    csv = (place / "metrics.csv" for place in (folder, new))
    found["metrics"] = compare_metrics(*csv, tolerance=tolerance, up_to=last)
    found["checkpoint"] = compare_checkpoints(saved, again, tolerance=tolerance, parts=parts)
    if saved["global_step"] != again["global_step"]:
        found["checkpoint"] = f"it is of step {saved['global_step']}, the new one of step {again['global_step']}"
    return [f"{what}: {difference}" for what, difference in found.items() if difference]


@one_line_errors
def hashes(cfg: DictConfig) -> None:
    """Compares the hashes of two runs, and names the first step and tensor that differ; exits with 1 if there is one."""
    from etude.core.hash_log import NAME, compare_hashes

    if not cfg.runs or len(cfg.runs) != 2:
        raise ValueError(f"runs={cfg.runs}: give two folders of runs, or their {NAME}: 'runs=[ONE,TWO]'")
    one, two = (path / NAME if (path := Path(each).expanduser()).is_dir() else path for each in cfg.runs)
    difference = compare_hashes(one, two)
    print(difference or f"the hashes of {one} and {two} agree at every step that both have")
    if difference:
        sys.exit(1)
