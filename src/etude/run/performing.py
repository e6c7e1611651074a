"""The programs synthesise and perform: scores to sound, and a piece generated, played and restyled in one command."""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from etude.core.called import program
from etude.run.command import one_line_errors
from etude.run.folder import run_folder
from etude.run.parts import build_with, finder, instantiate, load_task
from etude.run.quiet import quiet_lightning


@one_line_errors
def synthesise(cfg: DictConfig) -> None:
    """Plays a score file with a trained model and a vocoder."""
    quiet_lightning()
    task = _player(cfg, cfg.run, "run")
    vocoder = build_with(cfg.vocoder, contract=task.contract, find=finder(cfg.outputs), load=load_task)
    instantiate(cfg.synthesise)(task=task, vocoder=vocoder, folder=run_folder())


@one_line_errors
def perform(cfg: DictConfig) -> None:
    """Generates a piece or takes a score, plays it with a synthesis model, and restyles the sound with a transfer model."""
    from etude.core.protocols import Translates
    from etude.run.starting import model_to_restyle

    quiet_lightning()
    task = _player(cfg, cfg.synthesis, "synthesis")
    options: dict[str, Any] = {}
    if cfg.style is not None:
        translator, _ = load_task(model_to_restyle(cfg.transfer, cfg.outputs, option="transfer"))
        if not isinstance(translator, Translates):
            told = f"holds a {type(translator).__name__}, which changes no styles"
            raise ValueError(f"transfer={cfg.transfer} {told}; give a run of `{program('train')} task=style_transfer`")
        options["translator"] = translator
        options["restyling_vocoder"] = build_with(
            cfg.vocoder, contract=translator.contract, find=finder(cfg.outputs), load=load_task
        )
    elif cfg.transfer is not None:
        raise ValueError("transfer= restyles to a style, which is missing; give style=NAME too, or leave transfer= out")
    if cfg.score is not None and cfg.ckpt is not None:
        raise ValueError("ckpt= names the model that generates a piece, but score= gives one; leave one of them out")
    if cfg.score is None:
        options["composer"] = _composer(cfg)
    vocoder = build_with(cfg.vocoder, contract=task.contract, find=finder(cfg.outputs), load=load_task)
    instantiate(cfg.perform)(task=task, vocoder=vocoder, folder=run_folder(), **options)


def _player(cfg: DictConfig, named: str | None, option: str) -> Any:
    """Loads the synthesis model that an option names. Raises: ValueError if there is none, or it is of another task."""
    from etude.core.checkpoint_search import find_checkpoint
    from etude.core.score_protocols import PlaysNotes, PlaysScores

    task, _ = load_task(find_checkpoint(named or "last", cfg.outputs, offers=PlaysNotes, option=option, best=True))
    if not isinstance(task, PlaysScores):
        told = f"holds a {type(task).__name__}, which plays no scores"
        raise ValueError(f"{option}={named} {told}; give a run of `{program('train')} task=synthesis`")
    return task


def _composer(cfg: DictConfig) -> Any:
    """Loads the model that generates a piece."""
    from etude.core.protocols import Composes
    from etude.run.starting import model_to_sample

    path: Path = model_to_sample(cfg.ckpt, cfg.outputs)
    task, _ = load_task(path)
    if not isinstance(task, Composes):
        raise ValueError(f"ckpt={cfg.ckpt} holds a {type(task).__name__}, which generates no scores; give one that does")
    print(f"generating with {path}", file=sys.stderr)
    return task
