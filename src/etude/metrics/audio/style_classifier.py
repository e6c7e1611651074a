"""A classifier that names the style of a stretch of mel, trained on real audio during the evaluation.

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

    Takes natural-log mels of one or more frames. `train_style_classifier` makes one; `predict` and `accuracy` use it.

    Args:
        num_styles: number of styles, s.
        num_bands: number of mel bands, m.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_styles: int, *, num_bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_bands, 1))
        self.register_buffer("std", torch.ones(num_bands, 1))
        self.conv1 = nn.Conv1d(num_bands, WIDTH, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2)
        self.output = nn.Linear(2 * WIDTH, num_styles)
        self.held_out_accuracy = float("nan")

    def forward(self, mel_nmf: Tensor) -> Tensor:
        """Returns the logits [n, s] of natural-log mels [n, m, f]."""
        x = F.relu(self.conv1((mel_nmf - self.mean) / self.std))
        x = F.relu(self.conv2(x))
        pooled = torch.cat([x.mean(dim=-1), x.std(dim=-1, correction=0)], dim=1)
        logits: Tensor = self.output(F.dropout(pooled, 0.2, self.training))
        return logits

    @torch.no_grad()
    def predict(self, segments_nmf: Tensor) -> Tensor:
        """Returns the most likely style of each segment, int64 [n].

        Raises:
            ValueError: no segment, or another number of bands than in training.
        """
        _check(segments_nmf, bands=self.mean.shape[0])
        self.eval()
        return torch.cat([self(part).argmax(dim=1) for part in torch.split(segments_nmf.float(), 256)])

    def accuracy(self, segments_nmf: Tensor, style_index: int) -> float:
        """Returns the share of segments, 0..1, that are classified as the style."""
        return float((self.predict(segments_nmf) == style_index).double().mean())


def train_style_classifier(
    segments_per_style: Sequence[Tensor],
    *,
    held_out_per_style: Sequence[Tensor] | None = None,
    seed: int = 0,
    steps: int = 300,
) -> StyleClassifier:
    """Trains a style classifier on real audio and measures its accuracy on held-out real audio.

    Every batch holds the same number of segments of each style, however much audio each has. Each segment is made up to
    12 dB louder or softer (values at the floor ln 1e-5 stay there), so that loudness tells nothing about the style.
    Adam, with a learning rate that falls to 0 along half a cosine. The same seed gives the same weights. The caller's
    random state is not changed.

    Such a classifier can be fooled: it may assign noise to a style as confidently as music. Never report its accuracy
    alone.

    Args:
        segments_per_style: for each style natural-log mels [n, m, f] of the training songs (`contract.denormalise` where needed).
        held_out_per_style: the same, of other songs. None holds out the last fifth of each style's segments, which are
            other songs only where the segments are ordered by song.
        seed: of the initial weights, the batches and the gains.
        steps: number of batches of 32; 300 take some seconds.

    Returns:
        The classifier; its `held_out_accuracy` is the mean over styles of its accuracy on held-out segments.

    Raises:
        ValueError: fewer than two styles, or a style with too few segments or with another number of bands.
    """
    if len(segments_per_style) < 2:
        raise ValueError(f"segments_per_style has {len(segments_per_style)} style; a classifier needs at least 2")
    train, held_out = _split(segments_per_style, held_out_per_style)
    for part in (*train, *held_out):
        _check(part, bands=train[0].shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _fit(train, steps=steps)
    classifier.held_out_accuracy = sum(classifier.accuracy(part, style) for style, part in enumerate(held_out)) / len(held_out)
    return classifier


def _fit(train: list[Tensor], *, steps: int) -> StyleClassifier:
    classifier = StyleClassifier(len(train), num_bands=train[0].shape[1])
    # the mean over styles: every style has the same weight, as in the batches
    classifier.mean.copy_(torch.stack([part.mean(dim=(0, 2)) for part in train]).mean(dim=0)[:, None])
    classifier.std.copy_(torch.stack([part.std(dim=(0, 2)) for part in train]).mean(dim=0)[:, None].clamp(min=0.1))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    classifier.train()
    for _ in range(steps):
        style = torch.arange(BATCH_SIZE) % len(train)
        batch = torch.stack([train[s][int(torch.randint(len(train[s]), ()))] for s in style.tolist()])
        gain = GAIN_NATS * (2 * torch.rand(BATCH_SIZE, 1, 1) - 1)
        loss = F.cross_entropy(classifier((batch + gain * (batch > FLOOR)).clamp(min=FLOOR)), style)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return classifier.eval()


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
