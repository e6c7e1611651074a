"""Passages grow, end at bar lines, and stay what they are: rows are the beginnings of documents."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Score

from etude.techniques.data.length_warmup import LengthWarmup, shortened
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.rows import packed_rows
from etude.tokens.satb import SatbGrid
from tests.toys import ToyGan, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], Any]) -> dict[str, Any]:
    return {"start_bars": 1, "full_bars": 4, "end": 1.0}


def song(tokenizer: Any, bars: int) -> torch.Tensor:
    score = Score(480)
    from symusic import Note, TimeSignature, Track

    score.time_signatures.append(TimeSignature(0, 4, 4))
    for _ in range(4):
        score.tracks.append(Track())
    for beat in range(4 * bars):
        for voice, pitch in enumerate((72, 67, 64, 48)):
            score.tracks[voice].notes.append(Note(480 * beat, 480, pitch + beat % 3, 80))
    return torch.tensor(tokenizer.encode(score), dtype=torch.int64)


TOKENIZERS = {"satb": SatbGrid(genres=["a"], bar_tokens=True), "remi": MidiTokTokenizer(genres=["a"], scheme="REMI"),
              "tsd": MidiTokTokenizer(genres=["a"], scheme="TSD")}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_document_keeps_its_first_bars_and_nothing_else_changes(name: str) -> None:
    tokenizer: Any = TOKENIZERS[name]
    bodies = [song(tokenizer, bars) for bars in (6, 2, 9)]
    batch = packed_rows(tokenizer, bodies, rows=2, length=sum(map(len, bodies)) + 3)
    short = shortened(batch, tokenizer, 3)
    assert short["tokens"].shape[1] < batch["tokens"].shape[1] and short["tokens"].shape[1] % 8 == 0
    for row in range(2):
        for document in range(int(batch["documents"][row].max()) + 1):
            old, new = (b["documents"][row] == document for b in (batch, short))
            count = int(new.sum())
            for key in ("tokens", "targets", "positions", *(n for n in batch if n.startswith("feature_"))):
                assert torch.equal(batch[key][row][old][:count], short[key][row][new]), key
            body = short["tokens"][row][new][1:].numpy()
            whole = batch["tokens"][row][old][1:].numpy()
            starts = tokenizer.bar_starts(whole)
            assert len(body) == (starts[3] if len(starts) > 3 else len(whole))
    assert (short["targets"][short["documents"] < 0] == -100).all()


def test_long_enough_changes_nothing_but_padding() -> None:
    tokenizer = TOKENIZERS["satb"]
    batch = packed_rows(tokenizer, [song(tokenizer, 4)], rows=1, length=64)
    assert all(torch.equal(batch[name], made) for name, made in shortened(batch, tokenizer, 50).items())


def test_mels_grow_to_their_full_length(tmp_path: Path) -> None:
    technique = LengthWarmup(start=0.25, end=0.5)
    task: Any = SimpleNamespace(contract=None, styles=None, batches_trained=0)
    technique.setup(trainer(tmp_path, max_steps=20), task, "fit")
    frames, batch = [], {"mel": torch.randn(3, 2, 16, 64)}
    for task.batches_trained in range(12):
        cut = technique.transform_batch(task, batch)["mel"]
        frames.append(cut.shape[-1])
        assert any(torch.equal(cut, batch["mel"][..., i : i + cut.shape[-1]]) for i in range(65 - cut.shape[-1]))
    assert frames[0] == 16 and frames[10:] == [64, 64] and all(np.diff(frames) >= 0) and not any(f % 4 for f in frames)


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start_bars is 8, must be at least 1 and at most full_bars=4"):
        LengthWarmup(start_bars=8, full_bars=4)
    with pytest.raises(ValueError, match="technique length_warmup cuts scores or mels, ToyGan has neither"):
        LengthWarmup().setup(trainer(tmp_path, max_steps=4), ToyGan(), "fit")
