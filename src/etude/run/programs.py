"""The programs train, generate, evaluate and transfer."""

import functools
import math
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from etude.core.called import program
from etude.run import again, before_after, continuing, recipes, starting
from etude.run.command import check_contract, check_types, one_line_errors
from etude.run.folder import locked_folder, run_folder, write_config
from etude.run.heads import set_targets
from etude.run.parts import (
    build_task,
    build_technique,
    build_trainer,
    build_with,
    check_fit,
    check_mels,
    check_sampling,
    finder,
    instantiate,
    load_task,
    prepare_data,
)  # fmt: skip
from etude.run.quiet import quiet_lightning
from etude.run.resuming import told_of_data, told_resuming
from etude.run.tracking import ends_dashboards

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from etude.sweeps.trial import RunningTrial


def _tell_changes(datamodule: Any, folder: Path, trainer: "pl.Trainer", task: "pl.LightningModule") -> None:
    """Prints in one line, and lists in the run's folder, what the tokenizer changes in training pieces.

    Called when training starts, since a run that is refused has no folder.
    """
    from etude.core.protocols import TellsChanges
    from etude.report.files import write_atomically

    if not trainer.is_global_zero or not isinstance(datamodule, TellsChanges):
        return
    if line := datamodule.told_changes(found := datamodule.changed_pieces()):
        print(f"{line}; {folder / 'changes.tsv'} lists them", file=sys.stderr)
        rows = [f"{piece}\t{what}\t{count}" for piece, changes in found for what, count in changes.items()]
        write_atomically(folder / "changes.tsv", "\n".join(["piece\twhat\tcount", *rows, ""]))


def _existing_tokenizer(tokenizer: Any) -> Callable[..., Any]:
    """Returns a constructor for a data module that gives the checkpoint's tokenizer, after a check of the data's genres."""

    def checked(*, genres: list[str]) -> Any:
        if missing := sorted(set(genres) - set(tokenizer.genres)):
            raise ValueError(
                f"the data has genres {missing}, which the checkpoint was not trained on (it knows "
                f"{list(tokenizer.genres)}); give the data= options of its run"
            )
        return tokenizer

    return checked


@one_line_errors
def train(cfg: DictConfig) -> float | None:
    """Trains a model, writes checkpoints, samples and the report; returns the best value of the monitored metric."""
    if cfg.get("trial") is None:
        return _train(cfg, None)
    from etude.sweeps.processes import end_with_parent
    from etude.sweeps.trial import running_trial

    end_with_parent()
    with running_trial(cfg.trial) as trial:
        return _train(cfg, trial)
    return None


def _train(cfg: DictConfig, trial: "RunningTrial | None") -> float | None:
    """Trains a model as a trial of a sweep, or alone if `trial` is None; see `train`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from etude.core.checkpoint_files import load_checkpoint, not_continued, resumable
    from etude.core.checkpoint_search import find_checkpoint

    folder, overrides = run_folder(), recipes.command_line()
    if trial is None and HydraConfig.get().mode == RunMode.MULTIRUN:
        again.keep_options(folder, overrides, found_again=bool(cfg.autoresume))
    if cfg.autoresume and trial is None:
        if (end := again.finished(folder)) is not None:
            return end.value
        cfg = again.continued(cfg, folder)
    if (cfg.get("stage") or {}).get("phases"):
        with locked_folder(folder):
            return recipes.train_phases(cfg, folder, overrides, functools.partial(_run, trial=trial))
    if cfg.get("stage") and not cfg.ckpt:
        cfg, overrides = recipes.starting_point(cfg, overrides)
    resume = resumable(find_checkpoint(cfg.ckpt, cfg.outputs)) if cfg.ckpt else None
    if resume is not None:
        checkpoint = load_checkpoint(resume)
        try:
            cfg, overrides = continuing.continued(cfg, checkpoint, overrides, path=resume)
        except Exception as error:  # its options may be malformed in any way
            raise not_continued(resume, error) from error
        if not any(recipes.key(option) in ("name", "data") for option in recipes.command_line()):
            cfg.name = checkpoint["etude"]["recipe"]["name"]  # the default name is that of the data, here of the continued run
        print(f"continuing {resume} with the options of its run: {' '.join(overrides) or 'the defaults'}", file=sys.stderr)
    new_settings = resume is not None and continuing.takes_settings(cfg, checkpoint["etude"]["recipe"])
    with locked_folder(folder):
        return _run(cfg, folder, overrides, resume, trial=trial, new_settings=new_settings)


@ends_dashboards
def _run(
    cfg: DictConfig, folder: Path, overrides: list[str], resume: Path | None, *, trial: "RunningTrial | None" = None,
    new_settings: bool = False,
) -> float | None:  # fmt: skip
    """Makes one training run; returns the best value of the monitored metric, or the last one if best.ckpt is not kept by it.

    overrides: the options from which `cfg` was composed. resume: the checkpoint to continue, None for a new run. trial: the trial
    of a sweep that this run is a part of. new_settings: a run that goes on gives its optimizer those of `cfg`.

    Raises: optuna.TrialPruned if the trial's pruner has ended the training.
    """
    import torch
    from omegaconf import open_dict
    from pytorch_lightning import seed_everything
    from pytorch_lightning.callbacks import LambdaCallback

    from etude.core.building import no_larger_than
    from etude.core.checkpoint_files import saved_step, saved_weights, validation_is_due, verify_archive
    from etude.core.lightning import callbacks_of, set_callbacks
    from etude.core.protocols import ChecksOptions, ChecksRequests, TellsLabels
    from etude.core.stopping import find_stopped
    from etude.core.technique import Composition
    from etude.durable import copy_durably
    from etude.report.dashboards import continue_curves
    from etude.report.run_end import told_end
    from etude.report.tracking import show_end
    from etude.run import repro
    from etude.run.inputs import write_inputs

    sampling = instantiate(cfg.sampling) if cfg.get("sampling") else None  # `~sampling` on the command line removes it
    if sampling is not None and isinstance(sampling.func, ChecksOptions):
        sampling.func.check(sampling.keywords)  # now rather than after hours of training
    if empty := [name for name, node in (cfg.get("technique") or {}).items() if node is None]:
        raise ValueError(f"technique.{empty[0]} is null; to leave the technique out, write ~technique.{empty[0]}")
    for name in [name for name, node in (cfg.get("technique") or {}).items() if "_target_" not in node]:
        if any(recipes.key(option).startswith(f"technique.{name}") for option in overrides):
            raise ValueError(f"technique.{name} is set, but the technique is not chosen; add it: technique=[{name},...]")
        with open_dict(cfg):  # an experiment sets an option of a technique that another choice has removed
            del cfg.technique[name]
    check_contract(cfg)
    check_types(cfg)
    set_targets(cfg, overrides)
    check_fit(cfg, overrides)
    overrides = repro.prepare(cfg, overrides)
    techniques = Composition(build_technique(node, cfg.outputs) for node in (cfg.get("technique") or {}).values()).techniques
    overrides = recipes.pinned(overrides, techniques)
    recipe: Any = OmegaConf.to_container(cfg, resolve=True)
    write_config(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    again.begin(folder)
    quiet_lightning()
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("high")

    done = None if resume is None else saved_step(resume)
    trainer = build_trainer(cfg, folder, techniques, step=done, trial=trial, new_settings=new_settings)
    if resume is not None and done is not None:
        continue_curves(trainer.loggers, step=done, validation_due=validation_is_due(resume))
    tokenizer = instantiate(cfg.tokenizer) if cfg.get("tokenizer") is not None else None
    datamodule = prepare_data(cfg.data, tokenizer, folder, outputs=cfg.outputs)
    start = starting.starting_weights(cfg, recipe, datamodule) if resume is None else None
    if resume is None:
        starting.check_start(start, techniques)
    write_inputs(folder, datamodule, techniques, start)
    labels = {"trained_labels": datamodule.trained_labels()} if isinstance(datamodule, TellsLabels) else {}
    with no_larger_than(saved_weights(resume), path=resume) if resume is not None else nullcontext():
        task = build_task(cfg, **datamodule.parts, **labels)
    task.check_metric(cfg.monitor, "monitor", cfg.monitor_mode, techniques)
    if start is not None:
        recipes.start_from(task, start, techniques)
    started = before_after.remembered(start, resume)
    before_after.check(cfg, task, started)
    task.recipe = {**recipe, "overrides": overrides, before_after.STARTED: started}
    if sampling is not None:
        check_sampling(sampling, task)
    if sampling is not None and isinstance(sampling.func, ChecksRequests):
        sampling.func.check_requests(sampling.keywords, task)
    set_callbacks(
        trainer, [LambdaCallback(on_train_start=functools.partial(_tell_changes, datamodule, folder)), *callbacks_of(trainer)]
    )
    last = folder / "checkpoints" / "last.ckpt"
    if resume is not None:
        verify_archive(resume)  # again, since Lightning reads the file now, and preparing the data may have taken hours
    began = time.monotonic()
    try:
        with told_resuming(resume, trainer):
            trainer.fit(task, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except SystemExit as end:  # raised by Lightning for Ctrl-C and other signals, after LastCheckpoint has written
        signal = find_stopped(end)
        if trainer.is_global_zero:
            how = f"`{program('train')} ckpt={folder}` continues this run" if last.is_file() else "before the first checkpoint"
            by = "" if signal.name == "Ctrl-C" else f" by {signal.name} (exit code {signal.exit_code})"
            print(f"stopped at step {trainer.global_step}{by}; {how}", file=sys.stderr)
            show_end(trainer, folder, monitor=cfg.monitor)
            if cfg.autoresume and trial is None:  # a sweep starts its trials again itself
                again.requeue(signal.number)
        sys.exit(signal.exit_code)
    seconds, steps = time.monotonic() - began, trainer.global_step - (done or 0)
    if resume is not None and not last.is_file() and trainer.is_global_zero:  # no step followed
        copy_durably(resume, last)
    if trial is not None:
        trial.raise_if_pruned()
    value = trainer.checkpoint_callback.best_model_score
    value = trainer.callback_metrics.get(cfg.monitor) if value is None else value
    if trainer.is_global_zero:
        best = Path(trainer.checkpoint_callback.best_model_path or last)
        if sampling is not None:
            shutil.rmtree(folder / "samples", ignore_errors=True)  # from before the run was continued
            trained, _ = load_task(best)
            more = before_after.sections(
                cfg, trained, started, datamodule=datamodule, folder=folder, **datamodule.parts, **labels
            )
            sampling(task=trained, folder=folder, datamodule=datamodule, **more)
        show_end(trainer, folder, monitor=cfg.monitor)
        chosen = cfg.get("technique") or {}
        alone = "stages" not in chosen and cfg.trainer.get("max_time") is None  # nothing else ends a run before its last step
        if line := told_end(
            folder / "metrics.csv", monitor=cfg.monitor, mode=cfg.monitor_mode, step=trainer.global_step, most=trainer.max_steps,
            seconds_per_step=seconds / steps if steps > 0 else math.nan, command=f"{program('train')} ckpt={folder}",
            patience=chosen.get("early_stopping", {}).get("patience") if alone else None,
        ):  # fmt: skip
            print(f"note: {line}", file=sys.stderr)
        print(f"checkpoint: {best}\nresults:    {folder}", file=sys.stderr)
        again.mark_finished(folder, step=trainer.global_step, value=value)
    return float(value) if value is not None else None


def _keep_options(cfg: DictConfig, folder: Path, program: str, *, ckpt: Path) -> None:
    """Writes the command's options beside what it makes, with the checkpoint that was found."""
    kept: Any = OmegaConf.to_container(cfg, resolve=True)
    (folder / f"{program}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({**kept, "ckpt": str(ckpt)})))


@one_line_errors
def generate(cfg: DictConfig) -> None:
    """Samples from a checkpoint; writes MIDI, audio, piano rolls and a report."""
    from etude.core.protocols import Composes

    path = starting.model_to_sample(cfg.ckpt, cfg.outputs)
    task, _ = load_task(path)
    if not isinstance(task, Composes):
        raise ValueError(
            f"{path} holds a {type(task).__name__}, which generates no scores; restyle audio with `{program('transfer')}`"
        )
    folder = run_folder()
    _keep_options(cfg, folder, "generate", ckpt=path)
    draft = {} if cfg.draft is None else {"draft": load_task(finder(cfg.outputs)(cfg.draft, "draft", Composes))[0]}
    instantiate(cfg.sampling)(task=task, folder=folder, **draft)
    print(f"results: {folder / 'report.html'}", file=sys.stderr)


@one_line_errors
def transfer(cfg: DictConfig) -> None:
    """Translates audio files, or with live=true what is being played, to another style with a checkpoint."""
    from etude.core.protocols import Translates

    given = [key for key in map(str, cfg) if key.startswith("live_") and key != "live_transfer" and cfg[key] is not None]
    if given and not cfg.live:
        raise ValueError(f"{given[0]}={cfg[given[0]]} does nothing without live=true; add that, or leave it out")
    quiet_lightning()
    task, _ = load_task(starting.model_to_restyle(cfg.ckpt, cfg.outputs))
    if not isinstance(task, Translates):
        raise ValueError(f"ckpt holds a {type(task).__name__}, which changes no styles; give one of task=style_transfer")
    vocoder = build_with(cfg.vocoder, contract=task.contract, find=finder(cfg.outputs), load=load_task)
    if cfg.live:
        instantiate(cfg.live_transfer)(task=task, vocoder=vocoder)
        with suppress(OSError):  # nothing is written there, unless by Hydra
            run_folder().rmdir()
        return
    instantiate(cfg.transfer)(task=task, vocoder=vocoder, folder=run_folder())


@one_line_errors
def evaluate(cfg: DictConfig) -> None:
    """Evaluates a checkpoint on held-out data, or measures a folder of scores."""
    from hydra.core.hydra_config import HydraConfig

    from etude.core.checkpoint_search import find_checkpoint
    from etude.core.protocols import Tokenized

    quiet_lightning()
    folder = run_folder()
    recipes.check_read(cfg)
    if cfg.files is not None:
        instantiate(cfg.score_files)(folder=folder)
    else:
        chosen = HydraConfig.get().runtime.choices.get("task")
        path = find_checkpoint(cfg.ckpt or "last", cfg.outputs, kind=chosen, best=True)
        task, recipe = load_task(path)
        kind = type(task).__module__.rpartition(".")[2]
        attacked = cfg.get("robustness")
        score = recipes.scoring(cfg, kind, path, logs=task.logged_metrics) if attacked is None else None
        with told_of_data(path):
            data: Any = recipe.data if cfg.data is None else OmegaConf.merge(recipe.data, cfg.data)
            check_mels(task, data, path)
            tokenizer = _existing_tokenizer(task.tokenizer) if isinstance(task, Tokenized) else None
            datamodule = prepare_data(data, tokenizer, folder, outputs=cfg.outputs)
        _keep_options(cfg, folder, "evaluate", ckpt=path)
        if attacked is None:
            instantiate(score)(task=task, datamodule=datamodule, folder=folder)
        else:
            parts = {"task": task, "datamodule": datamodule, "folder": folder}
            build_with(attacked, **parts, find=finder(cfg.outputs), load=load_task)
    print(f"results: {folder / 'report.html'}", file=sys.stderr)
