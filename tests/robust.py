"""Tasks on which robust training is tested: the classifier of scores with one network, and the grader, beside their data."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from etude.core.task import Task
from etude.models.symbolic.transformer import Transformer
from etude.tasks.classifier import Classifier
from tests.songs import write_songs
from tests.tasks.test_grader import GradedData
from tests.tasks.test_grader import task as grader
from tests.test_composition import halves, music


def classifier(songs: Path, **options: Any) -> tuple[Task, Any]:
    """A classifier whose heads share one network, which therefore has continuous inputs."""
    torch.manual_seed(0)
    data = music(songs, controls=[], targets=["genre", "half"], labels_file=str(halves(songs)))
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2, dropout=0.1, causal=False)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    made = Classifier(
        model=model, tokenizer=data.tokenizer, balance_classes=True, optimizer=optimizer, seed=1, **data.label_parts, **options
    )
    return made, data


def pair(kind: str, folder: Path, **options: Any) -> tuple[Task, Any]:
    """Returns (task, data): kind is classifier or grader; folder keeps the songs."""
    torch.manual_seed(0)
    if kind == "grader":
        return grader(seed=1, optimizer=partial(torch.optim.AdamW, lr=1e-3), **options), GradedData(0)
    songs = folder / "songs"
    return classifier(songs if songs.is_dir() else write_songs(songs), **options)


def first_batch(data: Any) -> dict[str, torch.Tensor]:
    """Returns a batch of the data."""
    data.prepare_data()
    data.setup("fit")
    found: dict[str, torch.Tensor] = next(iter(data.train_dataloader()))
    return found
