"""Style transfer of real recordings. There is no true result, so it measures the distance to the style and what is preserved.

    OMP_NUM_THREADS=1 python benchmarks/style_real.py --ckpt last --audio FOLDER --rows docs/results/rows/style_real.jsonl \\
        --pictures docs/results

For each recording and style: distance of its band means and deviations to the style's training audio before and after (root
of the mean square over bands, nats, loudness apart), and agreement of onsets, of the chroma of the waveform and of the notes that
a network finds with the recording itself; the share of frames with a band more than 6 dB above all training frames of the style,
clicks at the hop rate and the loudness range, before and after. A recording that is far from all styles is also far from the
training data.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from peer import context

from etude.audio.files import AudioWriter, read_audio
from etude.audio.griffin_lim import GriffinLim
from etude.core.checkpoint_files import saved_step
from etude.core.checkpoint_search import find_checkpoint
from etude.core.protocols import Restyles
from etude.metrics.audio.artefacts import click_level, loudness_range, squeal_share
from etude.metrics.audio.mel_features import onset_agreement, waveform_chroma_correlation
from etude.metrics.audio.note_finder import NoteFinder
from etude.metrics.audio.notes import note_f1
from etude.report.style_plots import mel_panels
from etude.run import parts as run
from etude.run.quiet import quiet_lightning
from etude.transfer.restyle import restyle

FORMATS = {".ogg", ".wav", ".flac", ".mp3"}


def excerpt(path: Path, out: Path, *, start: float, seconds: float, rate: int) -> None:
    """Writes a mono excerpt of a recording; if it is too short, the excerpt begins at 0 s."""
    samples_cn, _ = read_audio(path, sample_rate=rate, mono=True)
    first = round(start * rate) if samples_cn.shape[-1] > (start + seconds) * rate else 0
    with AudioWriter(out, sample_rate=rate, channels=1) as writer:
        writer.write(samples_cn[:, first : first + round(seconds * rate)])


def measure(task: Any, path: Path, folder: Path, name: str, pictures: Path | None) -> list[dict[str, Any]]:
    """One row for each style."""
    contract, found = task.contract, []
    frame_rate = contract.sample_rate / contract.hop_length
    source_n = read_audio(path, sample_rate=contract.sample_rate, mono=True)[0]
    source_mf = contract.log_mel(source_n)[0]
    before, rate = task.bands.distances(source_mf), contract.sample_rate
    finder = NoteFinder()
    source_notes = finder(source_n[0], sample_rate=rate)
    panels = {"as it is": source_mf}
    for number, style in enumerate(task.styles):
        out = folder / f"{path.stem}_{style}.wav"
        restyle(task=task, vocoder=GriffinLim(contract=contract), folder=folder, input=str(path), output=str(out), style=style)
        fake_n = read_audio(out, sample_rate=contract.sample_rate, mono=True)[0]
        fake_mf = contract.log_mel(fake_n)[0]
        panels[f"in {style}"] = fake_mf
        found.append({
            "recording": name, "style": style, "seconds": source_n.shape[-1] / contract.sample_rate,
            "distance_before": math.sqrt(float(before[number]) / contract.n_mels),
            "distance_after": math.sqrt(float(task.bands.distances(fake_mf)[number]) / contract.n_mels),
            "onset_f": onset_agreement(source_mf, fake_mf, frame_rate=frame_rate),
            "chroma_r": waveform_chroma_correlation(source_n[0], fake_n[0], sample_rate=rate),
            "note_f1": note_f1(finder(fake_n[0], sample_rate=rate), source_notes),
            "squeals": [squeal_share(mel, task.bands.statistics[number, 2]) for mel in (source_mf, fake_mf)],
            "clicks_db": [click_level(x[0], sample_rate=rate, click_rate=frame_rate) for x in (source_n, fake_n)],
            "range_db": [loudness_range(x[0], sample_rate=rate) for x in (source_n, fake_n)],
        })  # fmt: skip
    if pictures is not None:
        (pictures / f"style_real_{name}.png").write_bytes(mel_panels(panels, frame_seconds=1 / frame_rate))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="last", help="a checkpoint or run of task=style_transfer")
    parser.add_argument("--audio", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--start", type=float, default=10.0, help="second at which an excerpt begins")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rows", type=Path, default=None, help="JSON lines to append to")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for mel pictures, style_real_<recording>.png")
    args = parser.parse_args()
    quiet_lightning()
    ckpt = find_checkpoint(args.ckpt, "outputs", offers=Restyles)
    task, _ = run.load_task(ckpt)
    for path in sorted(path for path in args.audio.iterdir() if path.suffix in FORMATS):
        name = path.stem.split("_-_")[-1].lower()
        with tempfile.TemporaryDirectory() as scratch:
            cut = Path(scratch) / f"{name}.wav"
            excerpt(path, cut, start=args.start, seconds=args.seconds, rate=task.contract.sample_rate)
            for row in measure(task, cut, Path(scratch), name, args.pictures):
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
                if args.rows is not None:
                    args.rows.parent.mkdir(parents=True, exist_ok=True)
                    with args.rows.open("a") as file:
                        file.write(json.dumps({**row, "steps": saved_step(ckpt), **context()}) + "\n")


if __name__ == "__main__":
    main()
