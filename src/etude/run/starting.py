"""Which model a program starts from where the user names none."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from etude.core.technique import Technique

AUTO = "auto"  # of weights=


def named_weights(cfg: DictConfig) -> str | None:
    """The checkpoint whose weights the user asks to start from; None if it is left to Etude (weights=auto) or there is none."""
    return None if cfg.weights in (None, AUTO) else str(cfg.weights)


def named_start(cfg: DictConfig) -> Path | None:
    """Returns the checkpoint that `weights=` names; None if it names none. Raises: ValueError if it is not there."""
    from etude.core import bundled
    from etude.core.checkpoint_search import find_checkpoint

    named = named_weights(cfg)
    if named == bundled.NAME:
        return bundled.start_of(cfg.task._target_)
    return None if named is None else find_checkpoint(named, cfg.outputs, option="weights", best=True)


def starting_weights(cfg: DictConfig, recipe: Mapping[str, Any], datamodule: Any) -> Path | None:
    """Returns the checkpoint whose weights a new run starts from; None for random weights.

    With weights=auto a folder of few scores starts from the model that comes with the package, if its network and tokens are the
    run's; stages and everything else start with random weights.
    """
    from etude.core import bundled
    from etude.core.protocols import KnowsSize

    if (start := named_start(cfg)) is not None:
        return start
    if cfg.weights != AUTO or cfg.get("stage") or not isinstance(datamodule, KnowsSize):
        return None
    if not bundled.fits(recipe, num_pieces=datamodule.num_training_pieces):
        return None
    print("few scores: starting from the model that comes with Etude; weights=null starts from random weights", file=sys.stderr)
    return bundled.PATH


def check_start(start: Path | None, techniques: Iterable["Technique"]) -> None:
    """Raises: ValueError where a new run starts from random weights and one of its techniques needs trained ones."""
    for technique in techniques:
        if start is None and technique.needs_weights:
            raise ValueError(
                f"technique {technique.name} needs trained weights, and this run would start from random ones: give weights=RUN, "
                f"or weights=bundled for the model that comes with Etude, or leave {technique.name} out of technique=[...]"
            )


def model_to_sample(ckpt: str | None, outputs: str) -> Path:
    """Returns the checkpoint to generate from: the one named; else that of the newest run, or, without any, the bundled model.

    Raises: ValueError if there is no such checkpoint.
    """
    from etude.core.protocols import Composes

    return _named_newest_or_bundled(ckpt, outputs, Composes, "ckpt")


def model_to_restyle(ckpt: str | None, outputs: str, *, option: str = "ckpt") -> Path:
    """Returns the checkpoint to restyle audio with, as `model_to_sample`; option: the one that holds `ckpt`, for messages."""
    from etude.core.protocols import Restyles

    return _named_newest_or_bundled(ckpt, outputs, Restyles, option)


def _named_newest_or_bundled(ckpt: str | None, outputs: str, offers: type, option: str) -> Path:
    from etude.core import bundled
    from etude.core.checkpoint_search import find_checkpoint

    try:
        return find_checkpoint(ckpt or "last", outputs, offers=offers, option=option, best=True)
    except ValueError:
        if ckpt is not None:
            raise
    model = find_checkpoint(bundled.NAME, outputs, offers=offers, option=option)
    purpose, knows = bundled.ABOUT[model]
    comes = f"this is the model that comes with Etude ({option}={bundled.NAME}), {knows}"
    print(f"no run that {purpose} in {outputs}/ yet: {comes}", file=sys.stderr)
    return model
