"""Vocoders on restyled mels: from a mel and its source to a waveform, compared with the true rendering of the same song.

    OMP_NUM_THREADS=1 python benchmarks/vocoder.py --transfer outputs/style/default_folk-rock_90_0 --split val --songs 6 \\
        --neural vocos=outputs/DATE/VOCODER inverter=outputs/DATE/INVERTER --rows docs/results/rows/vocoder.jsonl

For each direction of the pair that the transfer model was trained on, and each vocoder, on mels that the model made
("generated") and on those of the true rendering ("true", what a perfect model would give): log-mel L1 of the waveform to the
truth, scaled to its loudness, and to the mel that was asked for; correlation of the waveform's pitch classes and note F1 with the
truth; clicks at the hop rate; seconds of audio made in a CPU-second. Griffin-Lim from the source's phase is the baseline.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer import append_row, context
from torch import Tensor
from training import composed

from etude.audio.griffin_lim import GriffinLim
from etude.audio.loudness import LoudnessMeter
from etude.core.checkpoint_search import find_checkpoint
from etude.evaluation.perceptual import opening
from etude.metrics.audio.artefacts import click_level
from etude.metrics.audio.mel_distances import log_mel_l1
from etude.metrics.audio.mel_features import waveform_chroma_correlation
from etude.metrics.audio.note_finder import NoteFinder
from etude.metrics.audio.notes import note_f1
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.tasks.vocoder import NeuralVocoder

Make = Callable[[Tensor, Tensor], Tensor]


def loudness(song_n: Tensor, rate: int) -> float:
    meter = LoudnessMeter(rate)
    meter.push(song_n[None])
    return meter.loudness()


def compared(
    made_n: Tensor, truth_n: Tensor, asked_mf: Tensor, truth_notes: Any, contract: Any, finder: NoteFinder
) -> dict[str, float]:
    """Returns the values of one song."""
    rate = contract.sample_rate
    gain = 10 ** ((loudness(truth_n, rate) - loudness(made_n, rate)) / 20)
    own_mf = contract.log_mel(made_n[None])[0]
    return {
        "wav_l1_nats": log_mel_l1(contract.log_mel(gain * made_n[None])[0], contract.log_mel(truth_n[None])[0]),
        "asked_l1_nats": float((own_mf - asked_mf).abs().mean()),
        "wav_chroma_r": waveform_chroma_correlation(made_n, truth_n, sample_rate=rate),
        "note_f1": note_f1(finder(made_n, sample_rate=rate), truth_notes),
        "clicks_db": click_level(made_n, sample_rate=rate, click_rate=rate / contract.hop_length),
    }


def vocoders(contract: Any, neural: list[str], *, variants: bool) -> dict[str, Make]:
    """Returns what makes a waveform [1, n] of a log mel [1, m, f] and the source's spectrum, by name; the baseline first."""
    baseline, found = GriffinLim(contract), dict[str, Make]()
    found["griffin_lim"] = lambda mel, source: baseline(mel, source=source)
    if variants:
        found["griffin_lim, 32 iterations"] = lambda mel, source: GriffinLim(contract, num_iters=32)(mel, source=source)
    for wish in neural:
        name, _, place = wish.partition("=")
        task: Any = run.load_task(find_checkpoint(place, "outputs", best=True))[0].eval()
        if difference := task.contract.difference(contract):
            raise SystemExit(f"error: --neural {wish} was trained on another mel contract: {difference}")
        voice = NeuralVocoder(task)
        found[name] = lambda mel, source, voice=voice: voice(mel, source)  # type: ignore[misc]
        if variants:
            found[f"{name}, without the source"] = lambda mel, source, voice=voice: voice(mel)  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfer", required=True, help="a run of task=style_transfer with two styles, or its last.ckpt")
    parser.add_argument("--neural", nargs="*", default=[], help="NAME=RUN of task=vocoder or task=mel_inverter")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--songs", type=int, default=6, help="of the split, from the first")
    parser.add_argument(
        "--variants", action="store_true", help="also Griffin-Lim with 32 iterations, and networks without source"
    )
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    parser.add_argument("options", nargs="*", help="options of the data, such as cache_dir=outputs/cache (after --)")
    args = parser.parse_args()
    quiet_lightning()
    transfer: Any = run.load_task(find_checkpoint(args.transfer, "outputs", best=True))[0].eval()
    folder = Path("outputs")
    cfg = composed(["task=style_transfer", f"styles=[{','.join(transfer.styles)}]", *args.options], folder)
    datamodule, contract, finder = run.prepare_data(cfg.data, None, folder), transfer.contract, NoteFinder()
    made = vocoders(contract, args.neural, variants=args.variants)
    for source, target in (transfer.styles, transfer.styles[::-1]):
        values: dict[tuple[str, str], list[dict[str, float]]] = {}
        spent: dict[str, list[float]] = {}
        for song in range(args.songs):
            pair = [opening(datamodule, args.split, style, song) for style in (source, target)]
            length = min(map(len, pair)) // contract.hop_length * contract.hop_length
            source_n, truth_n = (each[:length] for each in pair)
            truth_notes = finder(truth_n, sample_rate=contract.sample_rate)
            source_mel, spectrum = contract.log_mel(source_n[None]), contract.spectrum(source_n[None])
            with torch.no_grad():
                mels = {
                    "generated": transfer.translate(source_mel, source=source, target=target),
                    "true": contract.log_mel(truth_n[None]),
                }
                for (kind, mel), (name, make) in ((m, v) for m in mels.items() for v in made.items()):
                    started = time.process_time()
                    wave_n = make(mel, spectrum)[0]
                    spent.setdefault(name, []).append(length / contract.sample_rate / (time.process_time() - started))
                    values.setdefault((kind, name), []).append(compared(wave_n, truth_n, mel[0], truth_notes, contract, finder))
        for (kind, name), songs in values.items():
            row: dict[str, Any] = {
                "mels": kind,
                "vocoder": name,
                "source": source,
                "target": target,
                "split": args.split,
                "songs": args.songs,
            }
            row |= {key: sum(song[key] for song in songs) / len(songs) for key in songs[0]}
            row["realtime_factor"] = sorted(spent[name])[len(spent[name]) // 2]
            row["wins"] = {
                key: _wins(songs, values[kind, "griffin_lim"], key) for key in ("wav_l1_nats", "wav_chroma_r", "note_f1")
            }
            print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
            if args.rows is not None:
                append_row(args.rows, row | context())


def _wins(songs: list[dict[str, float]], baseline: list[dict[str, float]], key: str) -> int:
    """Returns in how many songs the value is better than the baseline's."""
    sign = -1 if key == "wav_l1_nats" else 1
    return sum(sign * (mine[key] - other[key]) > 1e-6 for mine, other in zip(songs, baseline, strict=True))


if __name__ == "__main__":
    main()
