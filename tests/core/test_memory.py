"""The memory: uniform, of bounded size, the same after a restart; documents come out as they went in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from etude.core.examples import batches_of, example_at, keys_of
from etude.core.memory import Memory
from tests.songs import write_songs
from tests.test_composition import build, music
from tests.toys import ToyGan


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build("language_model", write_songs(tmp_path_factory.mktemp("memory") / "songs"))


def numbered(first: int, count: int) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(first, first + count)[:, None].float(), "b": torch.zeros(count, 1)}


@pytest.mark.parametrize("size", [1, 5])
def test_every_example_is_equally_likely_to_be_kept(size: int) -> None:
    kept, task, runs = np.zeros(30), ToyGan(), 600
    for seed in range(runs):
        memory = Memory(size=6, seed=seed)
        for first in range(0, 30, size):
            memory.add(numbered(first, size), of=task)
        for each in memory.current:
            kept[int(each.example["a"])] += 1
    assert kept.sum() == 6 * runs
    assert chisquare(kept).pvalue > 1e-3


def test_a_piece_that_comes_again_is_kept_once_and_as_likely(language: Any) -> None:
    task, data = language
    counts: dict[int, int] = {}
    batches = [batch for _ in range(3) for batch in data.train_dataloader()]
    pieces = {piece for batch in batches for piece, _ in keys_of(batch, of=task)}
    for seed in range(200):
        memory = Memory(size=3, seed=seed)
        for batch in batches:
            memory.add({name: value[:, :64] for name, value in batch.items()}, of=task)
        keys = [kept.key for kept in memory.current]
        assert len(set(keys)) == len(keys) == 3
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
    assert set(counts) == pieces and chisquare(list(counts.values())).pvalue > 1e-3


def test_sections_share_the_memory_and_keep_what_they_would_have_kept_alone() -> None:
    task, memory = ToyGan(), Memory(size=12, seed=1)
    for section in range(3):
        memory.add(numbered(100 * section, 50), of=task)
        assert len(memory.current) + memory.num_kept <= 12
        memory.end_section()
        assert [len(each) for each in memory.ended] == [12 // (section + 2)] * (section + 1)
    for section, kept in enumerate(memory.ended):
        assert all(100 * section <= float(each.example["a"]) < 100 * section + 50 for each in kept)
    memory.end_section()  # empty: not a section
    assert len(memory.ended) == 3
    drawn = memory.draw(5, torch.Generator().manual_seed(0), of=task)
    assert sum(len(batch["a"]) for batch in drawn) == 5
    assert [len(batches[0]["a"]) for batches in memory.draw_each(2, torch.Generator().manual_seed(0), of=task)] == [2, 2, 2]


def test_a_memory_of_a_state_goes_on_as_it_was() -> None:
    task, whole = ToyGan(), Memory(size=5, seed=3)
    whole.add(numbered(0, 20), of=task)
    whole.end_section()
    whole.add(numbered(50, 7), of=task)
    again = Memory(size=5, seed=3)
    again.load_state_dict(whole.state_dict())
    for memory in (whole, again):
        memory.add(numbered(60, 9), of=task)
        memory.end_section()
    assert str(whole.state_dict()) == str(again.state_dict())


def test_documents_come_out_with_the_likelihood_that_they_had_in_their_row(language: Any) -> None:
    task, data = language
    task.eval()
    batch = next(iter(music(Path(data.corpus.root), max_len=512).train_dataloader()))
    places = keys_of(batch, of=task)
    examples = [example_at(batch, place, of=task) for _, place in places]
    assert len(examples) > 2 and sum(e["tokens"].shape[1] for e in examples) == int((batch["documents"] >= 0).sum())
    (padded,) = batches_of(examples, of=task, device=task.device)
    with torch.no_grad():
        before, after = task.token_nll(batch), task.token_nll(padded)
    for number, (piece, (row, start, end)) in enumerate(places):
        assert set(batch["piece"][row, start:end].tolist()) == {piece}
        torch.testing.assert_close(after[number, : end - start], before[row, start:end], rtol=1e-4, atol=1e-5)
        assert not after[number, end - start :].any()
