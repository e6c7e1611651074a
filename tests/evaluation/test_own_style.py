"""Before and after: what is said follows from the numbers, a model that copies is told from one that learned."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.evaluation.own_style import among, before_and_after, exceeding, learned, told_copying
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.tokens.satb import SatbGrid
from tests.songs import song, write_songs


def test_pieces_of_which_each_is_there_twice_share_all_and_others_nothing() -> None:
    pieces = [song(number, bars=8) for number in range(6)]
    assert among(pieces, num_bars=4).max() < 0.2
    # at least one twin lies in another part
    twins = among([piece for piece in pieces for _ in range(2)], num_bars=4)
    assert len(twins) == 12 and twins.mean() > 0.5
    assert len(among(pieces[:1], num_bars=4)) == 0


def test_the_p_value_is_the_share_of_divisions_with_as_large_a_gap() -> None:
    assert exceeding(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0])) == pytest.approx(1 / 20, abs=0.02)  # 1 of 20 divisions
    assert exceeding(np.zeros(3), np.ones(3)) == 1.0
    assert exceeding(np.full(4, 0.5), np.full(4, 0.5)) == 1.0
    draw = np.random.default_rng(0)
    values = [exceeding(draw.random(8), draw.random(8)) for _ in range(40)]
    assert 0.3 < np.mean(values) < 0.7


def test_what_is_told_follows_from_the_numbers() -> None:
    few, many = np.full(12, 0.02), np.full(12, 0.6)
    assert told_copying(many, few).startswith("The model copies: 60.0% of samples' passages occur in training pieces, 2.0%")
    assert told_copying(few, many).startswith("The model does not copy more than the pieces do among themselves: 2.0%")
    assert told_copying(few[:1], many) == "Copying can't be judged: 1 sample with 12 notes."
    assert told_copying(few, many[:0]) == "Copying can't be judged: 0 pieces with 12 notes."
    row = {"measure": "validation pieces, nats per token", "before": 2.0, "after": 1.5}
    assert "1.500 instead of 2.000 nats per token (25% less)" in learned([row])
    assert learned([{**row, "after": 2.0}]).startswith("Held-out pieces are no likelier than before")
    assert "data.split=[0.8,0.2,0]" in learned([{**row, "measure": "notes in the piece's key, share"}])


def test_a_model_is_compared_with_its_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = MusicDataModule(
        corpus=Folder(str(write_songs(tmp_path / "songs", count=20))), tokenizer=SatbGrid, cache_dir=str(tmp_path / "cache"),
        max_len=256, max_eval_len=512, batch_size=2, prepare_workers=1, seed=1,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    network = partial(Transformer, dim=16, num_layers=1, num_heads=2)

    def made(scale: float) -> Any:
        torch.manual_seed(0)
        found = LanguageModel(model=network, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2)).eval()
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.mul_(scale)
        return found

    options: dict[str, Any] = {"datamodule": data, "folder": tmp_path, "num_samples": 3, "num_bars": 2}
    with pytest.raises(ValueError, match=r"before_after\.num_samples is 1, must be at least 2"):
        before_and_after(before=made(1.0), after=made(1.0), **{**options, "num_samples": 1})
    page = before_and_after(before=made(8.0), after=made(1.0), **options).html()
    with (tmp_path / "before_after.csv").open(newline="") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    first = rows["validation pieces, nats per token"]
    assert float(first["before"]) > float(first["after"]) and first["the pieces themselves"] == ""
    assert 0 <= float(rows["notes in the piece's key, share"]["the pieces themselves"]) <= 1
    assert 0 <= float(rows["copied passages of 12 notes, share"]["after"]) <= 1
    assert len(rows) == 9 and "Before and after" in page and "Held-out pieces are likelier than before" in page
    assert "Held-out pieces are likelier than before" in capsys.readouterr().err
