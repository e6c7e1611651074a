"""Filling in draws from the model's distribution given what is known, which can be enumerated for a tiny model."""

import itertools
import math

import pytest
import torch

from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.particles import Cell, Filled, fill_grid
from etude.tokens.grammar import BOS
from etude.tokens.satb import SatbGrid

TOKENIZER = SatbGrid(low=60, high=62)
BODY = range(TOKENIZER.rest_id, len(TOKENIZER))


@pytest.fixture(scope="module")
def model() -> GridTransformer:
    torch.manual_seed(0)
    net = GridTransformer(
        vocab_size=len(TOKENIZER), low=60, high=62, dim=64, num_layers=1, num_heads=2, decoder_dim=16, dropout=0.0,
        context_dropout=0.0, feature_sizes=TOKENIZER.feature_sizes,
    )  # fmt: skip
    for parameter in net.parameters():  # far from uniform
        parameter.data.mul_(4.0)
    return net.eval()


def log_likelihoods(model: GridTransformer, pieces_ntv: torch.Tensor) -> torch.Tensor:
    """The logarithm of each piece's probability among those of its length, [n]."""
    flat = pieces_ntv.flatten(1)
    ids = torch.cat([torch.full((len(flat), 1), BOS), flat], dim=1)
    voice = torch.tensor([0, *[1, 2, 3, 4] * pieces_ntv.shape[1]]).expand(ids.shape)
    documents = torch.arange(len(ids))[:, None].expand(ids.shape)
    with torch.no_grad():
        logits = model(ids, documents_bt=documents, features={"voice": voice})[:, :-1].double()
    logits[..., : BODY.start] = -torch.inf
    return logits.log_softmax(-1).gather(2, flat[..., None])[..., 0].sum(1)


def piece() -> torch.Tensor:
    return torch.tensor([[1, 2, 3, 1], [2, 2, 1, 3], [3, 1, 2, 2]]) + BODY.start


def filled(model: GridTransformer, cells: torch.Tensor, num_pieces: int, particles: int) -> Filled:
    return fill_grid(
        model, [BOS], piece(), cells, first_body=BODY.start, num_pieces=num_pieces, particles=particles,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


def test_missing_cells_have_the_models_distribution_given_the_others(model: GridTransformer) -> None:
    cells = torch.zeros(3, 4, dtype=torch.long)
    cells[0, 1] = cells[1, 0] = Cell.MISSING
    every = piece().repeat(len(BODY) ** 2, 1, 1)
    for row, (first, second) in enumerate(itertools.product(BODY, BODY)):
        every[row, 0, 1], every[row, 1, 0] = first, second
    joint = log_likelihoods(model, every)
    result = filled(model, cells, 600, 32)
    assert torch.equal(result.tokens[:, cells == Cell.GIVEN], piece()[cells == Cell.GIVEN].expand(600, -1))
    found = (result.tokens[:, 0, 1] - BODY.start) * len(BODY) + result.tokens[:, 1, 0] - BODY.start
    got, true = torch.bincount(found, minlength=len(BODY) ** 2) / 600, joint.softmax(0)
    given_only_the_past = filled(model, cells, 600, 1).tokens
    past = (given_only_the_past[:, 0, 1] - BODY.start) * len(BODY) + given_only_the_past[:, 1, 0] - BODY.start
    left = torch.bincount(past, minlength=len(BODY) ** 2) / 600
    assert (got - true).abs().sum() / 2 < 0.08 < (left - true).abs().sum() / 2
    assert float(result.evidence.exp().mean().log()) == pytest.approx(float(joint.logsumexp(0)), abs=0.05)


def test_held_cells_go_on_with_what_was_drawn(model: GridTransformer) -> None:
    cells = torch.zeros(3, 4, dtype=torch.long)
    cells[0, 2], cells[1, 2], cells[2, 2] = Cell.MISSING, Cell.HELD, Cell.HELD
    tokens = filled(model, cells, 40, 8).tokens
    assert (tokens[:, 1:, 2] == tokens[:, :1, 2]).all() and len(tokens[:, 0, 2].unique()) > 1


def test_the_same_seed_draws_the_same_and_bad_arguments_are_refused(model: GridTransformer) -> None:
    cells = torch.full((3, 4), int(Cell.MISSING))
    assert torch.equal(filled(model, cells, 3, 4).tokens, filled(model, cells, 3, 4).tokens)
    with pytest.raises(ValueError, match="some cells missing"):
        filled(model, torch.zeros(3, 4, dtype=torch.long), 1, 1)
    with pytest.raises(ValueError, match="particles=0"):
        filled(model, cells, 1, 0)
    assert math.isfinite(float(filled(model, cells, 1, 1).evidence))
