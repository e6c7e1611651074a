"""What live transfer costs: latency, speed on one core, and the distance to the result of a file; and what stereo keeps.

    OMP_NUM_THREADS=1 python benchmarks/live_transfer.py --ckpt outputs/2026-01-31/12-00-00_style --audio my_recordings

Rows for docs/results/audio.md. `case` latency: of the algorithm, at several sample rates. `case` live: recordings are streamed
at the model's sample rate with a block and a number of frames ahead; `l1_nats` is the mean difference of the log mels of the
result and of that of a file, `change_nats` that of the latter and the source. `border_db` is the energy of the second
difference within 1 ms of block borders over that elsewhere, which a click raises; the same of the file's result stands beside
it. `case` stereo: two recordings are panned to different places, and restyled by each treatment of stereo; `mono_l1_nats`
compares the mono mix of the result with the restyled mono mix, `correlation` and `width_db` (side over mid) are given before
and after. No sound card's buffers are in any figure.
"""

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peer import append_row, context
from torch import Tensor
from training import ROOT

from etude.audio.files import read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.live_limiter import LiveLimiter
from etude.core.checkpoint_search import find_checkpoint
from etude.metrics.audio.artefacts import click_level
from etude.run.parts import load_task
from etude.run.quiet import quiet_lightning
from etude.transfer.live_stream import LiveRestyler, latency_parts
from etude.transfer.stereo import STEREO
from etude.transfer.stream import StreamRestyler, StyleRequest, restyle_stream

ROWS = ROOT / "docs" / "results" / "rows" / "live_transfer.jsonl"
PAN = 0.8  # of one recording to the left and the other to the right


def restyled(samples_cn: Tensor, restyler: StreamRestyler) -> Tensor:
    """Returns what a restyler makes of samples, given hop by hop."""
    rate = restyler.task.contract.sample_rate
    return torch.cat(list(restyle_stream(samples_cn.split(restyler.hop, 1), rate, restyler)), 1)


def border_db(samples_1n: Tensor, period: int, rate: int) -> float:
    """Returns how much the second difference around block borders exceeds that elsewhere, in decibels; 0 for no click."""
    energy = samples_1n[0].diff(n=2).square()
    energy = energy[: len(energy) // period * period].view(-1, period)
    near = rate // 1000
    at_border = torch.cat([energy[:, :near], energy[:, -near:]], 1).mean(1)
    elsewhere = energy[:, near:-near].mean(1)
    heard = elsewhere > 1e-3 * elsewhere.mean()
    return float(10 * (at_border[heard] / elsewhere[heard]).log10().mean())


def live_row(
    task: Any, vocoder: Any, request: StyleRequest, samples: Tensor, whole: Tensor, block: int, ahead: int
) -> dict[str, Any]:
    """Returns what one recording says of a block and frames ahead."""
    contract = task.contract
    restyler = LiveRestyler(task, vocoder, request, block_frames=block, ahead_frames=ahead)
    restyler.warm_up(1)
    started, started_cpu = time.perf_counter(), time.process_time()
    found = restyled(samples, restyler)
    wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    mel, rate, period = contract.log_mel(whole), contract.sample_rate, block * contract.hop_length
    return {
        "case": "live", "block": block, "ahead": ahead, "cpu_ms_per_block": 1000 * cpu / restyler.blocks,
        "realtime_factor": samples.shape[1] / rate / cpu, "wall_factor": samples.shape[1] / rate / wall,
        "l1_nats": float((contract.log_mel(found) - mel).abs().mean()),
        "change_nats": float((contract.log_mel(samples) - mel).abs().mean()),
        "border_db": border_db(found, period, rate), "border_file_db": border_db(whole, period, rate),
        "clicks_db": click_level(found[0], sample_rate=rate, click_rate=rate / period),
        "clicks_file_db": click_level(whole[0], sample_rate=rate, click_rate=rate / period),
    }  # fmt: skip


def latency_row(task: Any, vocoder: Any, request: StyleRequest, block: int, ahead: int) -> dict[str, Any]:
    """Returns the latency of the algorithm at several sample rates; it depends on no recording."""
    restyler = LiveRestyler(task, vocoder, request, block_frames=block, ahead_frames=ahead)
    parts = {rate: latency_parts(restyler, LiveLimiter(rate), rate) for rate in (16_000, 22_050, 44_100, 48_000)}
    return {
        "case": "latency", "block": block, "ahead": ahead,
        **{f"latency_{rate}_ms": round(1000 * sum(each.values()), 2) for rate, each in parts.items()},
    }  # fmt: skip


def stereo_rows(task: Any, vocoder: Any, request: StyleRequest, one: Tensor, other: Tensor) -> list[dict[str, Any]]:
    """Returns a row for each treatment of stereo, of two recordings in different places."""
    contract, rate = task.contract, task.contract.sample_rate
    left, right = (1 + PAN) / 2, (1 - PAN) / 2
    stereo = torch.cat([left * one + right * other, right * one + left * other])
    mono = restyled(stereo.mean(0, keepdim=True), StreamRestyler(task, vocoder, request, 1024))
    found = []
    for name in STEREO:
        started = time.process_time()
        result = restyled(stereo, StreamRestyler(task, vocoder, request, 1024, stereo=name))
        spent = time.process_time() - started
        mix = result.mean(0, keepdim=True)
        found.append({
            "case": "stereo", "stereo": name, "correlation_before": correlation(stereo), "correlation": correlation(result),
            "width_before_db": width_db(stereo), "width_db": width_db(result),
            "width_off_db": float((band_widths(result, contract) - band_widths(stereo, contract)).abs().mean()),
            "mono_l1_nats": float((contract.log_mel(mix) - contract.log_mel(mono)).abs().mean()),
            "mono_snr_db": float(10 * (mono.square().sum() / (mix - mono).square().sum().clamp(min=1e-12)).log10()),
            "clicks_db": click_level(result[0], sample_rate=rate), "clicks_before_db": click_level(stereo[0], sample_rate=rate),
            "realtime_factor": stereo.shape[1] / rate / spent,
        })  # fmt: skip
    return found


def correlation(samples_2n: Tensor) -> float:
    """Returns the correlation of two channels."""
    return float(torch.corrcoef(samples_2n)[0, 1])


def width_db(samples_2n: Tensor) -> float:
    """Returns the energy of the side over that of the mid, in decibels."""
    mid, side = samples_2n.sum(0), samples_2n[0] - samples_2n[1]
    return float(10 * (side.square().sum() / mid.square().sum()).log10())


def band_widths(samples_2n: Tensor, contract: Any) -> Tensor:
    """Returns the side over the mid of each mel band, in decibels, over the whole recording [m]."""
    mid, side = samples_2n.sum(0, keepdim=True), samples_2n[:1] - samples_2n[1:]
    power = [contract.bands(contract.spectrum(x).abs()).square().sum(-1)[0] for x in (mid, side)]
    return 10 * (power[1] / power[0]).log10()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="last", help="a trained model of task=style_transfer")
    parser.add_argument("--audio", type=Path, required=True, help="a folder of recordings")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each recording, from its tenth second on")
    parser.add_argument("--source", default="folk")
    parser.add_argument("--style", default="jazz")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--aheads", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 16, 32])
    parser.add_argument("--cases", nargs="+", default=["latency", "stereo", "live"], choices=["latency", "stereo", "live"])
    parser.add_argument("--most", type=int, default=4, help="recordings that are streamed")
    parser.add_argument("--rows", type=Path, default=ROWS, help="JSON lines to append to")
    args = parser.parse_args()
    quiet_lightning()
    task: Any = load_task(find_checkpoint(args.ckpt, "outputs", best=True))[0]
    contract, vocoder = task.contract, GriffinLim(task.contract)
    request = StyleRequest(weights={args.style: 1.0}, source=args.source, intensity=1.0)
    recordings = {}
    for path in sorted(path for path in args.audio.iterdir() if path.suffix in (".ogg", ".wav", ".flac", ".mp3")):
        samples, rate = read_audio(path, sample_rate=contract.sample_rate, mono=True)
        first, count = 10 * rate, round(args.seconds * rate)
        if samples.shape[1] >= first + count:
            recordings[path.stem] = samples[:, first : first + count]
    shared = {"source": args.source, "style": args.style, "seconds": args.seconds}
    names = list(recordings)
    for block, ahead in product(args.blocks, args.aheads) if "latency" in args.cases else ():
        if block == 2 or ahead == 4:
            append_row(args.rows, latency_row(task, vocoder, request, block, ahead) | context())
    for one, other in zip(names, names[1:] + names[:1], strict=True) if "stereo" in args.cases else ():
        for row in stereo_rows(task, vocoder, request, recordings[one], recordings[other]):
            append_row(args.rows, {"recording": f"{one[:24]} and {other[:24]}", **shared, **row, **context()})
    for name, samples in list(recordings.items())[: args.most] if "live" in args.cases else ():
        whole = restyled(samples, StreamRestyler(task, vocoder, request, 1024))
        for block, ahead in product(args.blocks, args.aheads):
            if block == 2 or ahead == 4:
                row = live_row(task, vocoder, request, samples, whole, block, ahead)
                append_row(args.rows, {"recording": name[:40], **shared, **row, **context()})


if __name__ == "__main__":
    main()
