"""Listens to restyled audio: notes found, embeddings, clicks and dynamics, compared with true or with real audio.

Shapes: n samples, m mel bands, f frames, p patches of 3 s, d embedding dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.audio.griffin_lim import GriffinLim
from etude.audio.loudness import LoudnessMeter
from etude.audio.mel import MelContract
from etude.metrics.audio.artefacts import click_level, loudness_range
from etude.metrics.audio.embedding_distances import frechet_audio_distance, kernel_audio_distance
from etude.metrics.audio.mel_distances import log_mel_l1
from etude.metrics.audio.mel_features import waveform_chroma_correlation
from etude.metrics.audio.musicnn import Musicnn
from etude.metrics.audio.note_finder import NoteFinder
from etude.metrics.audio.notes import Floats, note_f1

SECONDS = 15.0  # of each song that is listened to
REFERENCE_SONGS = 24  # training songs of the style whose embeddings are the reference
COLUMNS = {
    # key: (name and unit, whether lower is better; None: nearer to the oracle's)
    "note_f1": ("note F1", False),
    "note_f1_source": ("note F1 with the source", None),
    "wav_l1_nats": ("L1 of the waveform's mel, nats", True),
    "wav_chroma_r": ("chroma correlation of the waveform", False),
    "fad": ("FAD", True),
    "kad": ("KAD", True),
    "clicks_db": ("clicks at the hop rate, dB", None),
    "range_off_db": ("loudness range off, dB", True),
}


class Listener:
    """Turns mels into sound and listens to it.

    Args:
        contract: the mel settings; its hop gives the rate of clicks.

    Raises:
        ValueError: a network that finds notes or makes embeddings is not installed.
    """

    def __init__(self, contract: MelContract) -> None:
        self.contract, self._vocoder = contract, GriffinLim(contract)
        self._finder, self._embedder = NoteFinder(), Musicnn()
        self._notes: dict[int, tuple[Tensor, Floats]] = {}  # of tensors that are heard again, such as sources
        self._references: dict[str, Floats] = {}

    def sound(self, log_mel_mf: Tensor, source_n: Tensor) -> Tensor:
        """Returns the waveform [n] of a mel, beginning with the phases of its source [n], as `transfer.py` makes it."""
        frames = log_mel_mf.shape[-1]
        spectrum = self.contract.spectrum(source_n[None])[..., :frames]
        return self._vocoder(log_mel_mf[None].cpu(), source=spectrum)[0, : len(source_n)]

    def embeddings(self, songs: Sequence[Tensor]) -> Floats:
        """Returns the embeddings of all songs [p, d]."""
        return np.concatenate([self._embedder(song, sample_rate=self.contract.sample_rate) for song in songs])

    def reference(self, datamodule: Any, style: str) -> Floats:
        """Returns the embeddings of up to `REFERENCE_SONGS` training songs of a style [p, d]; those of a style are made once."""
        if style not in self._references:
            count = min(REFERENCE_SONGS, datamodule.num_pieces("train", style))
            self._references[style] = self.embeddings([opening(datamodule, "train", style, i) for i in range(count)])
        return self._references[style]

    def notes(self, song_n: Tensor) -> Floats:
        """Returns the notes of a song; those of the same tensor are found once."""
        if id(song_n) not in self._notes:
            self._notes[id(song_n)] = (song_n, self._finder(song_n, sample_rate=self.contract.sample_rate))
        return self._notes[id(song_n)][1]

    def compare(
        self, fakes: Sequence[Tensor], *, sources: Sequence[Tensor], truths: Sequence[Tensor] | None, reference_pd: Floats
    ) -> dict[str, float]:
        """Returns a value for each key of `COLUMNS`, means over songs; NaN where it needs the truths and there are none.

        Args:
            fakes, sources, truths: waveforms [n] of each song. reference_pd: embeddings of the target style's training audio.
        """
        rate, hop_rate = self.contract.sample_rate, self.contract.sample_rate / self.contract.hop_length
        heard = [self.notes(song) for song in fakes]
        made_pd = self.embeddings(fakes)
        found = {
            "note_f1_source": _mean([note_f1(a, self.notes(b)) for a, b in zip(heard, sources, strict=True)]),
            "fad": frechet_audio_distance(made_pd, reference_pd),
            "kad": kernel_audio_distance(made_pd, reference_pd),
            "clicks_db": _mean([click_level(song, sample_rate=rate, click_rate=hop_rate) for song in fakes]),
        }
        if truths is not None:
            pairs = list(zip(fakes, truths, strict=True))
            ranges = [[loudness_range(song, sample_rate=rate) for song in pair] for pair in pairs]
            found |= {
                "note_f1": _mean([note_f1(a, self.notes(b)) for a, b in zip(heard, truths, strict=True)]),
                "wav_l1_nats": _mean([self._l1(*pair) for pair in pairs]),
                "wav_chroma_r": _mean([waveform_chroma_correlation(*pair, sample_rate=rate) for pair in pairs]),
                "range_off_db": _mean([abs(one - other) for one, other in ranges]),
            }
        return {name: found.get(name, math.nan) for name in COLUMNS}

    def _l1(self, fake_n: Tensor, truth_n: Tensor) -> float:
        """Returns the L1 of the mels of two waveforms, the first scaled to the loudness of the second."""
        apart = self._loudness(truth_n) - self._loudness(fake_n)
        gain = 10 ** (apart / 20) if math.isfinite(apart) else 1.0
        mels = [self.contract.log_mel(song[None])[0] for song in (gain * fake_n, truth_n)]
        return log_mel_l1(*mels)

    def _loudness(self, song_n: Tensor) -> float:
        meter = LoudnessMeter(self.contract.sample_rate)
        meter.push(song_n[None])
        return meter.loudness()


def opening(datamodule: Any, split: str, style: str, index: int) -> Tensor:
    """Returns the first `SECONDS` of a piece, in whole frames [n]."""
    contract = datamodule.contract
    frames = round(SECONDS * contract.sample_rate / contract.hop_length)
    samples: Tensor = datamodule.samples(split, style, index)
    return samples[: frames * contract.hop_length]


def _mean(values: Sequence[float]) -> float:
    defined = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    return float(defined.mean()) if len(defined) else math.nan
