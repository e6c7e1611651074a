"""The context that is kept up to date token by token is the one that is computed of whole pieces."""

import pytest
import torch

from etude.models.symbolic.grid_cache import RunningContext
from etude.models.symbolic.grid_context import REST, compute_context


def pieces(frames: int) -> torch.Tensor:
    """Three pieces with rests, held notes and long repetitions, [3, f, 4]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(55, 62, (3, frames, 4), generator=generator)
    held = noise[:, torch.arange(frames) // 3]
    held[1] = held[1, torch.arange(frames) % 16]
    held[2, ::7] = REST
    held[2, :2, 0] = REST
    return held


def test_the_running_context_is_that_of_the_whole() -> None:
    frames = pieces(70)
    whole = compute_context(frames)
    running = RunningContext(3, torch.device("cpu"))
    for place, pitch in enumerate(frames.flatten(1).unbind(1)):
        frame, voice = divmod(place, 4)
        ids, chroma, references = running.next()
        assert torch.equal(ids, whole.ids[:, frame, voice]), (frame, voice)
        torch.testing.assert_close(chroma, whole.chroma[:, frame, voice], atol=1e-5, rtol=1e-5)
        assert torch.equal(references[:, :4], whole.references[:, frame, voice])
        assert torch.equal(references[:, 4], whole.references[:, frame, 0, 0])
        running.push(pitch)
    assert torch.equal(running.tokens, frames.flatten(1))


@pytest.mark.parametrize("known", [3, 64, 130])
def test_selected_rows_go_on_as_if_they_had_always_been_these(known: int) -> None:
    tokens, rows = pieces(40).flatten(1), torch.tensor([2, 0, 0, 2])
    chosen, other = RunningContext(3, torch.device("cpu")), RunningContext(4, torch.device("cpu"))
    for place in range(tokens.shape[1]):
        if place == known:
            chosen.select(rows)
        chosen.push(tokens[rows, place] if place >= known else tokens[:, place])
        other.push(tokens[rows, place])
    for mine, its in zip(chosen.next(), other.next(), strict=True):
        torch.testing.assert_close(mine, its)
