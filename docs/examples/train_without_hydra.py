"""A training session without Hydra: data, a model, a technique, Lightning's trainer, samples."""

from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch

from etude.data.scores.corpora import Chorales, Corpus
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.weights.ema import Ema
from etude.tokens.satb import SatbGrid


def session(*, corpus: Corpus, steps: int, folder: Path) -> list[Path]:
    """Trains a small language model and returns two MIDI files of four bars in G major."""
    data = MusicDataModule(corpus=corpus, tokenizer=SatbGrid, cache_dir=str(folder / "cache"), max_len=1024, batch_size=2)
    data.prepare()
    torch.manual_seed(0)
    task = LanguageModel(
        model=partial(Transformer, dim=96, num_layers=2, num_heads=4),
        tokenizer=data.tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=2e-3),
    )
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "use_distributed_sampler": False}
    pl.Trainer(max_steps=steps, callbacks=[Ema(decay=0.98)], default_root_dir=folder, **options).fit(task, data)
    scores = task.sample(num_samples=2, num_bars=4, labels={"key": "G major"}, seed=1)
    files = [folder / f"sample{number}.mid" for number in range(len(scores))]
    for score, file in zip(scores, files, strict=True):
        score.dump_midi(file)
    return files


if __name__ == "__main__":
    print(*session(corpus=Chorales(), steps=600, folder=Path("outputs")), sep="\n")
