"""A judge of style, trained in the run on real audio: which style does a piece of a mel sound like?

Shapes: n segments, m mel bands, f frames, s styles.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN_NATS = 1.4  # 12 dB
FLOOR = math.log(1e-5)
LEARNING_RATE = 2e-3
BATCH_SIZE = 32
WIDTH = 64


class StyleClassifier(nn.Module):
    """Two convolutions over time that see all bands at once, pooled by mean and standard deviation over time.

    Takes natural-log mels of any number of frames from 1 up. Judge with `predict` and `accuracy`; made by
    `train_style_classifier`.

    Args:
        num_styles: s. num_bands: m.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_styles: int, *, num_bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_bands, 1))
        self.register_buffer("std", torch.ones(num_bands, 1))
        self.hear = nn.Conv1d(num_bands, WIDTH, 5, stride=2, padding=2)
        self.combine = nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2)
        self.judge = nn.Linear(2 * WIDTH, num_styles)
        self.held_out_accuracy = float("nan")

    def forward(self, mel_nmf: Tensor) -> Tensor:
        """Returns logits [n, s] of natural-log mels."""
        x = F.relu(self.hear((mel_nmf - self.mean) / self.std))
        x = F.relu(self.combine(x))
        pooled = torch.cat([x.mean(dim=-1), x.std(dim=-1, correction=0)], dim=1)
        return self.judge(F.dropout(pooled, 0.2, self.training))

    @torch.no_grad()
    def predict(self, segments_nmf: Tensor) -> Tensor:
        """Returns the most likely style of each segment, int64 [n].

        Raises:
            ValueError: no segment, or another number of bands than in training.
        """
        _check(segments_nmf, bands=self.mean.shape[0])
        self.eval()
        return torch.cat([self(part).argmax(dim=1) for part in segments_nmf.float().split(256)])

    def accuracy(self, segments_nmf: Tensor, style_index: int) -> float:
        """Share of segments, 0..1, that are taken for the style."""
        return float((self.predict(segments_nmf) == style_index).double().mean())


def train_style_classifier(
    segments_per_style: Sequence[Tensor],
    *,
    held_out_per_style: Sequence[Tensor] | None = None,
    seed: int = 0,
    steps: int = 300,
) -> StyleClassifier:
    """Trains a judge on real audio and lets it prove itself on real audio that it has not heard.

    Batches hold every style alike, whatever the amount of each. Each piece is made up to 12 dB louder or softer (what
    falls to ln 1e-5 stays there), so that level is no evidence. Adam, a learning rate that falls to 0 in half a cosine;
    the same seed gives the same weights. The caller's random state is left alone.

    A judge like this can be fooled: noise may be taken for a style as surely as music. Never report its accuracy alone.

    Args:
        segments_per_style: for each style natural-log mels [n, m, f] of the training songs (`contract.denormalise` where needed).
        held_out_per_style: the same of songs that are not among them; None keeps the last fifth of each style's segments,
            which are other songs only where segments come song by song.
        seed: of initial weights, batches and gains.
        steps: batches of 32; 300 take seconds.

    Returns:
        The judge; its `held_out_accuracy` is the mean over styles of the share of held-out segments it knew.

    Raises:
        ValueError: fewer than two styles, or a style with too few segments or with another number of bands.
    """
    if len(segments_per_style) < 2:
        raise ValueError(f"segments_per_style has {len(segments_per_style)} style; a judge needs at least 2 to tell apart")
    train, held_out = _split(segments_per_style, held_out_per_style)
    for part in (*train, *held_out):
        _check(part, bands=train[0].shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = _fit(train, steps=steps)
    judge.held_out_accuracy = sum(judge.accuracy(part, style) for style, part in enumerate(held_out)) / len(held_out)
    return judge


def _fit(train: list[Tensor], *, steps: int) -> StyleClassifier:
    judge = StyleClassifier(len(train), num_bands=train[0].shape[1])
    # every style counts alike, as in the batches
    judge.mean.copy_(torch.stack([part.mean(dim=(0, 2)) for part in train]).mean(dim=0)[:, None])
    judge.std.copy_(torch.stack([part.std(dim=(0, 2)) for part in train]).mean(dim=0)[:, None].clamp(min=0.1))
    optimizer = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    judge.train()
    for _ in range(steps):
        style = torch.arange(BATCH_SIZE) % len(train)
        pieces = torch.stack([train[s][int(torch.randint(len(train[s]), ()))] for s in style.tolist()])
        louder = GAIN_NATS * (2 * torch.rand(BATCH_SIZE, 1, 1) - 1)
        loss = F.cross_entropy(judge((pieces + louder * (pieces > FLOOR)).clamp(min=FLOOR)), style)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def _split(segments: Sequence[Tensor], held_out: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
    if held_out is not None:
        if len(held_out) != len(segments):
            raise ValueError(f"held_out_per_style has {len(held_out)} styles, segments_per_style {len(segments)}; give the same")
        return [part.float() for part in segments], [part.float() for part in held_out]
    kept = [max(len(part) // 5, 1) for part in segments]
    return (
        [part[:-n].float() for part, n in zip(segments, kept, strict=True)],
        [part[-n:].float() for part, n in zip(segments, kept, strict=True)],
    )


def _check(segments: Tensor, *, bands: int) -> None:
    if segments.ndim != 3 or len(segments) == 0 or segments.shape[1] != bands or segments.shape[2] == 0:
        raise ValueError(
            f"segments have shape {tuple(segments.shape)}; give [1 or more segments, {bands} bands, frames], "
            "two or more of each style where a part is to be held out"
        )
