"""Wall time, real-time factor and peak memory of `restyle` on long files; each length is measured in its own process.

    python benchmarks/transfer_speed.py                                   # 1, 10 and 20 minutes of made-up stereo, 44.1 kHz
    python benchmarks/transfer_speed.py --ckpt outputs/2026-01-31/12-00-00_style --rows rows.jsonl

A model of contract=44k, for which a few steps of training suffice, since they do not change the speed:

    python train.py task=style_transfer contract=44k max_steps=20 data.corpus.songs_per_style=4 data.corpus.paired_val=2 \\
        data.corpus.paired_test=2 sampling=null hydra.run.dir=outputs/cd
    python benchmarks/transfer_speed.py --ckpt outputs/cd --minutes 1 10 --rows docs/results/rows/transfer_speed.jsonl

Without a checkpoint a random network of 1.6 million weights replaces the model; the result is then the time of reading,
resampling, mels, vocoder, loudness and writing.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peer import context
from torch import Tensor, nn

from etude.audio.files import AudioWriter, inspect_audio, stream_audio
from etude.audio.griffin_lim import GriffinLim
from etude.audio.mel import MelContract


class StandIn(nn.Module):
    """A random network with the interface of a trained style-transfer model: three convolutions over frames."""

    styles = ("folk", "rock")
    context_frames, stride = 6, 1

    def __init__(self, contract: MelContract) -> None:
        super().__init__()
        self.contract = contract
        sizes = (contract.n_mels, 512, 512, contract.n_mels)
        torch.manual_seed(0)
        convolutions = [nn.Conv1d(a, b, 5, padding=2) for a, b in pairwise(sizes)]
        self.net = nn.Sequential(convolutions[0], nn.GELU(), convolutions[1], nn.GELU(), convolutions[2])

    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
        """Adds the output of the random network to the mel."""
        return log_mel_bmf + self.net(self.contract.normalise(log_mel_bmf))

    def style_distances(self, log_mel_mf: Tensor) -> dict[str, float]:
        """Returns that all styles are equally far."""
        return dict.fromkeys(self.styles, 1.0)


def make_sound(path: Path, minutes: float, *, sample_rate: int, channels: int) -> None:
    """Writes chords of decaying tones with a little noise, a new one each half second."""
    generator = torch.Generator().manual_seed(0)
    time_s = torch.arange(sample_rate // 2) / sample_rate
    with AudioWriter(path, sample_rate=sample_rate, channels=channels) as writer:
        for _ in range(round(120 * minutes)):
            pitches = torch.randint(40, 80, (3,), generator=generator)
            tones = [
                torch.sin(6.2832 * h * 440 * 2 ** ((p - 69) / 12) * time_s) / h for p in pitches.tolist() for h in range(1, 7)
            ]
            chord = torch.stack(tones).sum(0) * torch.exp(-4 * time_s)
            writer.write(0.1 * chord + 0.01 * torch.randn(channels, len(time_s), generator=generator))


def measure(minutes: float, options: dict[str, Any], results: Any) -> None:
    """Restyles one file and puts its row into the queue; peak memory is that of this process."""
    from etude.transfer.restyle import restyle

    torch.set_num_threads(options["threads"])
    task: Any = StandIn(MelContract()).eval()
    if options["ckpt"]:
        from etude.core.checkpoint_search import find_checkpoint
        from etude.run.parts import load_task

        task = load_task(find_checkpoint(options["ckpt"], "outputs"))[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"in.{options['format']}"
        make_sound(path, minutes, sample_rate=options["sample_rate"], channels=options["channels"])
        started, started_cpu = time.perf_counter(), time.process_time()
        (out,) = restyle(
            task=task, vocoder=GriffinLim(task.contract), folder=Path(folder), input=str(path), output=None,
            style=options["style"] or task.styles[-1], block_frames=options["block_frames"],
        )  # fmt: skip
        wall, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        assert inspect_audio(out).num_samples == sum(block.shape[1] for block in stream_audio(path))
    kept = ("threads", "sample_rate", "channels", "format", "block_frames")
    results.put(
        {
            "minutes": minutes,
            "wall_s": round(wall, 2),
            "cpu_s": round(cpu, 2),
            "realtime_factor": round(60 * minutes / wall, 1),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "imports_rss_mb": round(before),
            "task": "checkpoint" if options["ckpt"] else "stand-in",
            "contract": {name: getattr(task.contract, name) for name in ("sample_rate", "n_fft", "hop_length", "n_mels")},
        }
        | {name: options[name] for name in kept}
    )


def main() -> None:
    """Prints a Markdown table; appends the rows to a JSON-lines file where one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 20])
    parser.add_argument("--ckpt", help="a trained style task; without it a stand-in")
    parser.add_argument("--style", help="the target style; the task's last one without it")
    parser.add_argument("--sample-rate", type=int, default=44_100)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--format", default="wav", choices=("wav", "flac", "ogg", "mp3"))
    parser.add_argument("--block-frames", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, help="a JSON-lines file that the rows are appended to")
    arguments = parser.parse_args()
    print(
        "| minutes | wall s | CPU s | times real time | peak memory MB | of which imports MB |\n|---:|---:|---:|---:|---:|---:|"
    )
    fresh = multiprocessing.get_context("spawn")
    for minutes in arguments.minutes:
        results = fresh.Queue()
        process = fresh.Process(target=measure, args=(minutes, vars(arguments), results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{minutes:g} minutes: the process ended with {process.exitcode}")
        row = results.get()
        print(
            f"| {minutes:g} | {row['wall_s']} | {row['cpu_s']} | {row['realtime_factor']} | {row['peak_rss_mb']} "
            f"| {row['imports_rss_mb']} |",
            flush=True,
        )
        if arguments.rows is not None:
            arguments.rows.parent.mkdir(parents=True, exist_ok=True)
            with arguments.rows.open("a") as file:
                file.write(json.dumps(context() | row) + "\n")


if __name__ == "__main__":
    main()
