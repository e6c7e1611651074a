"""musicnn, a network that was trained to tag music: its embeddings, for distances between sets of recordings.

Shapes: n samples, p patches of about 3 s, t frames, m mel bands, c channels, d embedding dimensions.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from etude.audio.resampling import Resampler
from etude.metrics.audio.tf_checkpoint import read_variables

SAMPLE_RATE, N_FFT, HOP, N_MELS = 16_000, 512, 256, 96
PATCH = 187  # frames of a patch: 3 s
EPSILON = 1e-3  # of TensorFlow's batch normalisation
NAMES = (
    "guitar,classical,slow,techno,strings,drums,electronic,rock,fast,piano,ambient,beat,violin,vocal,synth,female,indian,opera,"
    "male,singing,vocals,no vocals,harpsichord,loud,quiet,flute,woman,male vocal,no vocal,pop,soft,sitar,solo,man,classic,choir,"
    "voice,new age,dance,male voice,female vocal,beats,harp,cello,no voice,weird,country,metal,female voice,choral"
)
TAGS = tuple(NAMES.split(","))  # of MagnaTagATune, in the order of the network's outputs


class Musicnn:
    """The network, in evaluation mode, with the weights that the package musicnn carries (trained on MagnaTagATune).

    Raises:
        ValueError: the package is not installed.

    Source: Pons and Serra 2019, "musicnn: pre-trained convolutional neural networks for music audio tagging". Deviation: the
    mel spectrogram is not rounded to half precision.
    """

    def __init__(self) -> None:
        spec = find_spec("musicnn")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "embedding distances need the weights in the package musicnn; install it without its dependencies: "
                "pip install --no-deps musicnn"
            )
        variables = read_variables(Path(spec.submodule_search_locations[0]) / "MTT_musicnn")
        self._weights = {name: torch.from_numpy(np.array(value)) for name, value in variables.items()}

    @torch.no_grad()
    def __call__(self, samples_n: ArrayLike, *, sample_rate: int) -> NDArray[np.float64]:
        """Returns the embeddings of the patches of mono audio, float64 [p, 200]: the last hidden layer. Audio shorter than a
        patch is repeated to fill one; a rest that fills none is left out.

        Raises:
            ValueError: no samples.
        """
        embeddings: NDArray[np.float64] = self._hidden(self._patches(samples_n, sample_rate)).double().numpy()
        return embeddings

    @torch.no_grad()
    def tags(self, samples_n: ArrayLike, *, sample_rate: int) -> dict[str, float]:
        """Returns the mean probability of each of `TAGS` over the patches."""
        hidden_pd = self._hidden(self._patches(samples_n, sample_rate))
        logits = hidden_pd @ self._weights["dense_1/kernel"] + self._weights["dense_1/bias"]
        return dict(zip(TAGS, logits.sigmoid().mean(0).tolist(), strict=True))

    def _patches(self, samples_n: ArrayLike, sample_rate: int) -> Tensor:
        wave_1n = torch.as_tensor(np.asarray(samples_n, np.float32))[None]
        if not wave_1n.shape[1]:
            raise ValueError("samples are empty; give at least one")
        resampler = Resampler(sample_rate, SAMPLE_RATE)
        wave_1n = torch.cat([resampler.push(wave_1n), resampler.flush()], 1)
        window = torch.hann_window(N_FFT)
        spectrum = torch.stft(wave_1n, N_FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True)[0]
        mel_tm = torch.log10(10_000 * (_filterbank() @ spectrum.abs().square()) + 1).T
        mel_tm = mel_tm.repeat(-(-PATCH // len(mel_tm)), 1) if len(mel_tm) < PATCH else mel_tm
        return mel_tm.unfold(0, PATCH, PATCH).transpose(1, 2)

    def _hidden(self, mel_ptm: Tensor) -> Tensor:
        """Returns the last hidden layer [p, d] of patches, a few at a time."""
        return torch.cat([self._forward(part) for part in torch.split(mel_ptm, 4)])

    def _forward(self, mel_ptm: Tensor) -> Tensor:
        x = self._normalised(mel_ptm[:, None], 0)
        timbral = [self._block(F.pad(x, (0, 0, 3, 3)), number) for number in (0, 1)]
        temporal = [self._block(F.pad(x, (0, 0, (k - 1) // 2, k // 2)), n) for n, k in ((2, 128), (3, 64), (4, 32))]
        features_pct = torch.cat([*timbral, *temporal], 1)
        layers = [features_pct]
        for number in (5, 6, 7):
            made = self._block(F.pad(layers[-1].transpose(1, 2)[:, None], (0, 0, 3, 3)), number)
            layers.append(made if number == 5 else made + layers[-1])
        every_pct = torch.cat(layers, 1)
        pooled = torch.stack([every_pct.amax(-1), every_pct.mean(-1)], -1).flatten(1)
        pooled = self._normalised(pooled, 9)
        return self._normalised(torch.relu(pooled @ self._weights["dense/kernel"] + self._weights["dense/bias"]), 10)

    def _block(self, x_p1tm: Tensor, number: int) -> Tensor:
        """Returns a convolution's channels [p, c, t], rectified and normalised, at their maximum over frequency."""
        name = f"conv2d_{number}" if number else "conv2d"
        kernel = self._weights[f"{name}/kernel"]  # height, width, 1, channels
        height, width = kernel.shape[:2]
        # all have one input channel; a product of unfolded patches takes a tenth of F.conv2d's time
        unfolded = x_p1tm[:, 0].unfold(1, height, 1).unfold(2, width, 1).flatten(3)
        made = torch.relu(unfolded @ kernel.reshape(height * width, -1) + self._weights[f"{name}/bias"])
        return self._normalised(made.permute(0, 3, 1, 2), number + 1).amax(-1)

    def _normalised(self, x: Tensor, number: int) -> Tensor:
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        mean, variance, gamma, beta = (
            self._weights[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return F.batch_norm(x, mean, variance, gamma, beta, eps=EPSILON)


@lru_cache(maxsize=1)
def _filterbank() -> Tensor:
    bank: Tensor = AF.melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return bank.T.contiguous()
