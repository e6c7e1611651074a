"""Fills in missing cells of a four-voice grid with a left-to-right model, by sequential Monte Carlo.

Many copies of the piece (particles) are continued at once. A missing cell is drawn from the model; a cell that is given is not
drawn, but multiplies the particle's weight by the probability that the model gives it. So copies that lead to what is given
replace those that don't. With ever more particles the result is a draw from the model's distribution of the missing cells given
all others. Nothing has to be trained for it.

Source: Gordon, Salmond and Smith 1993 (the bootstrap filter); Lew et al. 2023, "Sequential Monte Carlo Steering of Large Language
Models".

Shapes: n pieces to draw, p particles of each, f frames, v = 4 voices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import torch
from torch import Tensor, nn

from etude.models.symbolic.sampling import check_sampling, distribution, draw


class Cell(IntEnum):
    """What is known of a cell of the grid."""

    GIVEN = 0  # its token
    MISSING = 1  # nothing
    HELD = 2  # that it holds the token before it in its voice


@dataclass(frozen=True)
class Filled:
    """Pieces with all cells, and how likely what was given is.

    tokens: int64 [n, f, 4].
    evidence: estimated log-likelihood of the cells that are given or held, from the first missing cell on, of each piece, [n].
    """

    tokens: Tensor
    evidence: Tensor


@torch.inference_mode()
def fill_grid(
    model: nn.Module,
    opening: list[int],
    tokens_fv: Tensor,
    cells_fv: Tensor,
    *,
    first_body: int,
    num_pieces: int,
    particles: int = 64,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator,
    on_step: Callable[[int], Any] | None = None,
) -> Filled:
    """Draws the missing cells of a piece.

    Args:
        model: a `GridTransformer`.
        opening: BOS or CONT, and the control tokens.
        tokens_fv: the ids of the piece's cells, int64 [f, 4]; those of missing and held cells don't matter.
        cells_fv: `Cell` of each, int64 [f, 4].
        first_body: id of the first token that a cell may have; the later ones may, too.
        num_pieces: n, drawn independently of each other.
        particles: p of each piece, at least 1. One particle continues from the left alone.
        temperature, top_k, top_p, min_p: see `sampling.distribution`; what is given is weighted with the temperature alone.
        generator: random generator on the CPU.
        on_step: called after each frame with the number of cells so far.

    Raises: ValueError if an argument is out of its range or no cell is missing.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    missing = (cells_fv == Cell.MISSING).any(1).nonzero()
    if particles < 1 or num_pieces < 1 or not len(missing):
        raise ValueError(f"particles={particles} and num_pieces={num_pieces} must be at least 1, and some cells missing")
    truncation: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    first, frames, device = int(missing[0]), len(tokens_fv), next(model.parameters()).device
    cache = cast(Any, model).new_cache(1, len(opening) + tokens_fv.numel())
    voices = [0] * len(opening) + [1, 2, 3, 4] * first
    start = torch.tensor([[*opening, *tokens_fv[:first].flatten().tolist()]], device=device)
    logits = model(start, features={"voice": torch.tensor([voices], device=device)}, cache=cache)[:, -1]
    cache.select(torch.zeros(num_pieces * particles, dtype=torch.long, device=device))
    logits = logits.expand(num_pieces * particles, -1)
    drawn = tokens_fv.to(device).repeat(num_pieces * particles, 1, 1)
    swarm = _Swarm(num_pieces, particles, generator)
    for frame in range(first, frames):
        for voice in range(4):
            token, weight = _next(logits, drawn, cells_fv, frame, voice, first_body=first_body, swarm=swarm, **truncation)
            drawn[:, frame, voice] = token
            swarm.weigh(weight)
            if (frame, voice) != (frames - 1, 3):
                feature = torch.full((len(token), 1), voice + 1, device=device)
                logits = model(token[:, None], features={"voice": feature}, cache=cache)[:, -1]
        if frame < frames - 1 and (rows := swarm.resampled()) is not None:
            cache.select(rows.to(device))
            drawn, logits = drawn[rows], logits[rows]
        if on_step is not None:
            on_step(4 * (frame - first + 1))
    return Filled(drawn[swarm.winners()].cpu(), swarm.evidence())


def _next(
    logits_bv: Tensor, drawn: Tensor, cells_fv: Tensor, frame: int, voice: int, *, first_body: int, swarm: "_Swarm",
    temperature: float, **truncation: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the next token of each particle and the logarithm of the factor of its weight, [n p] each."""
    cell = int(cells_fv[frame, voice])
    logits = logits_bv.double().cpu()
    logits[:, :first_body] = -torch.inf
    if cell == Cell.MISSING:
        chosen = draw(distribution(logits, temperature=temperature, **truncation), swarm.uniform())
        return chosen.to(drawn.device), torch.zeros(len(logits), dtype=torch.float64)
    token = drawn[:, frame - 1 if cell == Cell.HELD else frame, voice]
    known = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, token.cpu()[:, None])[:, 0]
    return token, known


class _Swarm:
    """The weights of p particles of each of n pieces."""

    def __init__(self, num_pieces: int, particles: int, generator: torch.Generator) -> None:
        self.shape, self.generator = (num_pieces, particles), generator
        self.log_weights = torch.zeros(self.shape, dtype=torch.float64)
        self.log_means = torch.zeros(num_pieces, dtype=torch.float64)  # of the weights at each resampling, summed

    def uniform(self) -> Tensor:
        """One number in [0, 1) for each particle, [n p]."""
        return torch.rand(self.shape, generator=self.generator, dtype=torch.float64).flatten()

    def weigh(self, factor: Tensor) -> None:
        """Multiplies the weights by factors, given as their logarithms [n p]."""
        self.log_weights += factor.view(self.shape)

    def resampled(self) -> Tensor | None:
        """Draws the particles of pieces whose weights have become too unequal anew; their rows, or None if none did."""
        shares = self.log_weights.softmax(1)
        uneven = (shares**2).sum(1) * self.shape[1] > 2  # the effective number of particles is below half of them
        if not uneven.any():
            return None
        pieces, particles = self.shape
        marks = (torch.arange(particles) + torch.rand(pieces, 1, generator=self.generator, dtype=torch.float64)) / particles
        chosen = torch.searchsorted(shares.cumsum(1), marks).clamp(max=particles - 1)  # systematic resampling
        chosen = torch.where(uneven[:, None], chosen, torch.arange(particles))
        mean = self.log_weights.logsumexp(1) - torch.tensor(particles, dtype=torch.float64).log()
        self.log_means += torch.where(uneven, mean, 0)
        self.log_weights = torch.where(uneven[:, None], 0, self.log_weights)
        return (chosen + particles * torch.arange(pieces)[:, None]).flatten()

    def evidence(self) -> Tensor:
        """The logarithm of the mean weight of each piece's particles, over all resamplings, [n]."""
        particles = torch.tensor(self.shape[1], dtype=torch.float64)
        return self.log_means + self.log_weights.logsumexp(1) - particles.log()

    def winners(self) -> Tensor:
        """Draws one particle of each piece by its weight; their rows, [n]."""
        chosen = draw(self.log_weights.softmax(1), torch.rand(self.shape[0], generator=self.generator, dtype=torch.float64))
        return chosen + self.shape[1] * torch.arange(self.shape[0])
