"""Gives a model of four voices the training pieces in which it looks passages up (model.memory=true)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from etude.core.phase_draws import data_of
from etude.core.protocols import TokenViews
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer


def remember_training(model: nn.Module, tokenizer: Tokenizer, trainer: Any) -> None:
    """Lets a network with a memory of passages read the training pieces; does nothing for another network.

    Raises: ValueError if the data are no scores.
    """
    if not isinstance(model, GridTransformer) or model.passages is None:
        return
    assert isinstance(tokenizer, SatbGrid)
    data = data_of(trainer)
    if not isinstance(data, TokenViews):
        raise ValueError("model.memory=true reads the training pieces of a datamodule of scores; set model.memory=false")
    pieces = data.view("train")
    model.passages.remember([tokenizer.decode_frames(pieces.body(index)) for index in range(len(pieces))])


def own_pieces_left_out(model: nn.Module) -> AbstractContextManager[None]:
    """Returns a context in which the memory of a network, where it has one, leaves out the piece that is read."""
    passages = model.passages if isinstance(model, GridTransformer) else None
    return nullcontext() if passages is None else passages.own_pieces_left_out()
