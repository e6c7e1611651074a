"""Measures the loss of audio -> mel -> audio with Griffin-Lim: chroma cosine and log-mel L1 with the source.

    python benchmarks/round_trip.py --audio FOLDER [--seconds 20] [--rows rows.jsonl]

It compares four starts: `random` uses only the mel; `phases` the source's phases but not its magnitudes; `source` both, as in
style transfer, with the mel unchanged; `tilted` both, for a mel tilted by -1 to 1 nat over the bands, to which its L1 refers.
"""

import argparse
import json
from pathlib import Path

import torch
from peer import context
from torch import Tensor

from etude.audio.files import AUDIO_SUFFIXES, read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract


def chroma(samples: Tensor, sample_rate: int) -> Tensor:
    """Unit pitch-class energies [12, f] of the first channel, 60 to 4000 Hz."""
    power = torch.stft(samples[0], 4096, 1024, window=torch.hann_window(4096), return_complex=True).abs().square()
    hertz = torch.arange(2049) * sample_rate / 4096
    heard = (hertz > 60) & (hertz < 4000)
    classes = (12 * torch.log2(hertz[heard] / 440)).round().long() % 12
    energies = torch.zeros(12, power.shape[1]).index_add_(0, classes, power[heard])
    return energies / energies.norm(dim=0).clamp(min=1e-9)


def trips(contract: MelContract, samples: Tensor, num_iters: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns pairs of requested mel and resulting waveform, for each start."""
    vocoder = GriffinLim(contract, num_iters=num_iters)
    log_mel, spectrum = contract.log_mel(samples), contract.spectrum(samples)
    guessed = vocoder.fit_magnitudes(log_mel.exp(), torch.ones_like(spectrum.abs()), vocoder.num_updates_alone)
    tilted = log_mel + torch.linspace(-1, 1, contract.n_mels)[:, None]
    return {
        "random": (log_mel, vocoder(log_mel)),
        "phases": (log_mel, vocoder(log_mel, source=torch.polar(guessed, spectrum.angle()))),
        "source": (log_mel, vocoder(log_mel, source=spectrum)),
        "tilted": (tilted, vocoder(tilted, source=spectrum)),
    }


def main() -> None:
    """Prints a Markdown table; appends its rows to a JSON-lines file where one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="a folder of recordings")
    parser.add_argument("--seconds", type=float, default=20, help="from the middle of each")
    parser.add_argument("--mels", type=int, nargs="+", default=[64, 80, 128])
    parser.add_argument("--iters", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rows", type=Path, help="a JSON-lines file that the rows are appended to")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.audio.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    rows = []
    print("| bands | iterations | start | chroma cosine | log-mel L1 |\n|---:|---:|---|---:|---:|")
    for n_mels in arguments.mels:
        contract = MelContract(n_mels=n_mels)
        size = round(arguments.seconds * contract.sample_rate) // contract.hop_length * contract.hop_length
        for num_iters in arguments.iters:
            found: dict[str, list[tuple[float, float]]] = {}
            for path in files:
                samples, rate = read_audio(path, sample_rate=contract.sample_rate, mono=True)
                begin = max(0, (samples.shape[1] - size) // 2)
                samples = samples[:, begin : begin + size]
                samples = samples[:, : samples.shape[1] // contract.hop_length * contract.hop_length]
                for start, (asked, back) in trips(contract, samples, num_iters).items():
                    cosine = (chroma(back, rate) * chroma(samples, rate)).sum(0).mean().item()
                    found.setdefault(start, []).append((cosine, (contract.log_mel(back) - asked).abs().mean().item()))
            for start, values in found.items():
                cosine, distance = (sum(column) / len(values) for column in zip(*values, strict=True))
                row = {"n_mels": n_mels, "num_iters": num_iters, "start": start, "chroma_cosine": cosine, "log_mel_l1": distance}
                rows.append(row | {"files": len(files), "seconds": arguments.seconds})
                print(f"| {n_mels} | {num_iters} | {start} | {cosine:.3f} | {distance:.3f} |", flush=True)
    if arguments.rows is not None:
        arguments.rows.parent.mkdir(parents=True, exist_ok=True)
        with arguments.rows.open("a") as file:
            file.writelines(json.dumps(context() | row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
