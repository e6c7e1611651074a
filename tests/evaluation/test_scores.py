"""The evaluation of a language model writes the samples that it has measured."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from symusic import Score

from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.evaluation.scores import score_model
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs


def test_a_second_evaluation_into_a_folder_replaces_the_samples_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = MusicDataModule(
        corpus=Folder(str(write_songs(tmp_path / "songs", count=40))), tokenizer=SatbGrid, cache_dir=str(tmp_path / "cache"),
        max_len=256, max_eval_len=512, batch_size=2, prepare_workers=1, seed=1,
    )  # fmt: skip
    data.prepare_data()
    data.setup("test")
    torch.manual_seed(0)
    task = LanguageModel(
        model=partial(Transformer, dim=16, num_layers=1, num_heads=2), tokenizer=data.tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1,
    ).eval()  # fmt: skip
    drawn: list[Score] = []
    sample: Any = task.sample
    monkeypatch.setattr(task, "sample", lambda **options: drawn.extend(found := sample(**options)) or found)
    for seed in (1, 2):
        drawn.clear()
        score_model(
            task=task, datamodule=data, folder=tmp_path, splits=["val"], num_samples=17, num_real=1, max_new_tokens=32,
            copying=False, seed=seed,
        )  # fmt: skip
        files = sorted((tmp_path / "samples").glob("*.mid"))
        assert [file.name for file in files] == [f"{number:03d}.mid" for number in range(17)]
        for file, score in zip(files, drawn, strict=True):
            assert _notes(Score(file)) == _notes(score)


def _notes(score: Score) -> set[tuple[int, int, int]]:
    return {(note.time, note.duration, note.pitch) for track in score.tracks for note in track.notes}
