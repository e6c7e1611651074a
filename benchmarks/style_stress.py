"""Stress test: 10,000 training steps on files of random lengths, rates and channels; counts failed batches and losses that are
not finite.

    OMP_NUM_THREADS=1 python benchmarks/style_stress.py --steps 10000 --rows docs/results/rows/style_stress.jsonl

The files (noise bursts, tones, silence, clipping; 0.2 to 60 s, 8 to 96 kHz, 1 to 6 channels) are made here, from a seed.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
from peer import context
from style_transfer import fit
from training import composed

from etude.run import parts as run
from etude.run.quiet import quiet_lightning


def write_files(folder: Path, *, seed: int, count: int) -> None:
    """Writes `count` random audio files for each of two styles."""
    draws = np.random.default_rng(seed)
    for style in ("low", "high"):
        (folder / style).mkdir(parents=True)
        for number in range(count):
            rate, channels = int(draws.choice([8000, 22050, 44100, 48000, 96000])), int(draws.choice([1, 2, 6]))
            time = np.arange(int(rate * np.exp(draws.uniform(np.log(0.2), np.log(60))))) / rate
            pitch = draws.uniform(60, 200) if style == "low" else draws.uniform(800, 3000)
            sound = np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * draws.uniform(0.2, 4) * time) > 0)
            sound = sound * draws.choice([0.01, 0.3, 1.0, 3.0]) + 0.05 * draws.standard_normal(len(time))
            sound[: int(len(time) * draws.choice([0, 0, 0.5]))] = 0  # half of some files is digital silence
            soundfile.write(folder / style / f"{number}.wav", np.clip(sound, -1, 1)[:, None].repeat(channels, 1), rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--rows", type=Path, default=None)
    args = parser.parse_args()
    quiet_lightning()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_files(folder / "audio", seed=0, count=args.files)
        options = ["task=style_transfer", "data=audio_folder", f"data.root={folder / 'audio'}", f"cache_dir={folder / 'cache'}",
                   "data.batch_size=2"]  # fmt: skip
        cfg = composed(options, folder)
        try:
            run.prepare_data(cfg.data, None, folder)
        except ValueError as error:  # of a few random files all may be too short
            sys.exit(f"error: --files {args.files} is too few: {str(error).rpartition('; ')[0]}; give a larger number")
        _, datamodule, clock = fit(cfg, folder, steps=args.steps, checks=0)
        row = {
            "options": "task=style_transfer data=audio_folder data.batch_size=2", "steps": clock.steps, "asked": args.steps,
            "not_finite": clock.not_finite, "files": 2 * args.files, "left_out": len(datamodule.quarantine),
            "reasons": sorted({reason for _, _, reason in datamodule.quarantine}), "cpu_s": round(clock.seconds),
        }  # fmt: skip
        print(json.dumps(row))
        if args.rows is not None:
            with args.rows.open("a") as file:
                file.write(json.dumps({**context(), **row}) + "\n")


if __name__ == "__main__":
    main()
