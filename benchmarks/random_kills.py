"""Kills training runs at random, continues them by the same command, and compares their endings bit for bit.

    OMP_NUM_THREADS=1 python benchmarks/random_kills.py --kills 20 [--seed 0] [--only TEXT] [--keep FOLDER]
        [--accelerator gpu] [--rows docs/results/rows/random_kills.jsonl]

Each case is a tiny run of a few dozen steps on made-up songs or sounds: every optimizer, sets of techniques, style transfer with
reader processes, two phases, two ranks. It is trained once without interruption, then again with `autoresume=true`: it is killed
by SIGKILL or SIGTERM at a random time, or while a checkpoint is written, continued, killed again, and at last left to end. All
checkpoints that it leaves (weights, optimizer state, schedule) and metrics.csv must be those of the uninterrupted run.
A combination that training refuses is told and not counted. Runs are forked from one process that has imported everything; those
of two ranks are started as a user starts them.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers")
OPTIMIZERS = ("adam", "adafactor", "adamw", "lion", "lookahead_adamw", "muon", "schedule_free", "soap", "sophia")
TECHNIQUES = (
    "adversarial", "balance", "bandit", "curriculum", "early_stopping", "ema", "finite", "grow_layers", "length_warmup",
    "live_quality", "lora", "loss_schedule", "musical_domain", "rdrop", "self_paced", "stability", "stages", "swa",
    "switch_optimizer",
)  # fmt: skip
FOR_SOUNDS = ("ema", "balance", "curriculum", "finite", "loss_schedule", "stability", "swa")
KILLS = (2, 3, 4, 6)  # of a case, if it does not end before
COMMON = ["logger=[csv]", "~sampling", "trainer=smoke", "trainer.log_every_n_steps=2", "data.prepare_workers=1"]
STEPS = ["max_steps=24", "trainer.max_steps=24", "trainer.val_check_interval=6"]
SCORES = [
    "data=folder", "model.dim=32", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=null", "data.max_len=256",
    "data.max_eval_len=512", "data.batch_size=2", "data.batches_per_epoch=10",
]  # fmt: skip
VAE = [option for option in SCORES if "kv" not in option] + ["task=vae", "model=transformer_vae", "model.encoder_layers=1"]
SOUNDS = [
    "task=style_transfer", "data=audio_folder", "model.dim=8", "model.num_blocks=1", "discriminator.channels=8",
    "data.segment_frames=32", "data.batch_size=2", "data.batches_per_epoch=10",
]  # fmt: skip


@dataclass
class Case:
    """A run to be killed: its name, its options, how often it is killed, and whether it needs processes of its own."""

    name: str
    options: list[str]
    kills: int
    started: bool = False  # as a user starts it, since Lightning starts the other ranks by the command line


def songs(folder: Path) -> Path:
    """Writes 12 small MIDI files of two genres."""
    from symusic import Note, Score, Tempo, TimeSignature, Track

    for number in range(12):
        draw = np.random.default_rng(number)
        score = Score(480)
        score.tempos.append(Tempo(0, 100.0))
        score.time_signatures.append(TimeSignature(0, 4, 4))
        for centre in (72, 60, 48):
            track = Track(program=52)
            for beat in range(24):
                track.notes.append(Note(beat * 480, 480, centre + int(draw.integers(-7, 8)), 80))
            score.tracks.append(track)
        path = folder / ("folk" if number % 2 else "jazz") / f"song{number:02d}.mid"
        path.parent.mkdir(parents=True, exist_ok=True)
        score.dump_midi(path)
    return folder


def sounds(folder: Path) -> Path:
    """Writes 5 short sounds of two styles."""
    import soundfile

    for style, partials in (("folk", 1), ("rock", 5)):
        for number in range(5):
            draw = np.random.default_rng(number)
            seconds = np.arange(16_000 * 2) / 16_000
            pitch = 220 * 2 ** (draw.integers(0, 12, 8) / 12)
            phase = 2 * np.pi * np.cumsum(np.repeat(pitch, len(seconds) // 8)) / 16_000
            wave = sum(np.sin(k * phase) / k for k in range(1, partials + 1)) / partials
            path = folder / style / f"sound{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * wave + 0.01 * draw.standard_normal(len(phase)), 16_000)
    return folder


def cases(seed: int) -> Iterator[Case]:
    """Yields cases without end, always the same for a seed."""
    draw = random.Random(seed)
    for number in range(10**6):
        kinds = ("scores", "scores", "vae", "sounds", "scores", "phases", "scores", "sounds", "scores", "ranks")
        kind = kinds[number % 10]
        often = [f"save_every={draw.choice([3, 5, 7])}", f"seed={draw.randrange(100)}"]
        often += [f"keep_last={draw.choice([1, 2])}", f"keep_best={draw.choice([1, 2])}", f"hash_every={draw.choice([0, 4])}"]
        if kind == "sounds":
            names = draw.sample(FOR_SOUNDS, draw.choice([0, 1, 2]))
            often += [f"data.num_workers={draw.choice([1, 2])}", f"technique=[{','.join(names)}]"]
            what = f"style transfer: {', '.join(names) or 'bare'}"
            yield Case(what, [*SOUNDS, *COMMON, *STEPS, *often], draw.choice(KILLS))
            continue
        optimizer = draw.choice(OPTIMIZERS)
        names = draw.sample(TECHNIQUES, draw.choice([0, 1, 1, 2, 3]))
        if optimizer == "schedule_free":
            names = [*(name for name in names if name not in ("ema", "swa", "early_stopping")), "schedule_free"]
        often += [f"optimizer={optimizer}", f"technique=[{','.join(names)}]"]
        if kind == "ranks":
            ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.limit_val_batches=2"]
            common = [option for option in COMMON if option != "trainer=smoke"]
            yield Case(f"two ranks: {optimizer}", [*SCORES, *common, *ranks, *STEPS, *often], draw.choice([1, 2]), started=True)
        elif kind == "phases":
            stage = "+stage={name:two,phases:[{name:a,options:['seed=1']},{name:b,options:['seed=2','optimizer.lr=0.002']}]}"
            yield Case(f"two phases: {optimizer}", [*SCORES, *COMMON, *STEPS, *often, stage], draw.choice(KILLS))
        elif kind == "vae":
            yield Case(f"vae: {', '.join([optimizer, *names])}", [*VAE, *COMMON, *STEPS, *often], draw.choice(KILLS))
        else:
            accumulate, workers = draw.choice([1, 1, 2]), draw.choice([0, 0, 2])
            often += [f"trainer.accumulate_grad_batches={accumulate}", f"data.num_workers={workers}"]
            what = ", ".join([optimizer, *names, *(["accumulated"] if accumulate > 1 else []), *(["workers"] if workers else [])])
            yield Case(what, [*SCORES, *COMMON, *STEPS, *often], draw.choice(KILLS))


# --- running ---


def train(options: list[str], folder: Path) -> None:
    """Trains in this process as the command does, in the folder that is given."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from etude.run import programs

    folder.mkdir(parents=True, exist_ok=True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=options, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            cfg.hydra.overrides.task = options
            cfg.hydra.job.config_name = "train"
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        programs.train(cfg)


class Run:
    """A training run in a process group of its own, which can be killed as a whole."""

    def __init__(self, case: Case, options: list[str], folder: Path, log: Path) -> None:
        self.folder, self.begin, self._code = folder, time.time(), None
        if case.started:
            command = [sys.executable, "-m", "etude.run.cli", "train", *options, f"hydra.run.dir={folder}"]
            with log.open("ab") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, cwd=ROOT)
            self.pid, self._process = process.pid, process
            return
        self._process = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                with log.open("ab") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                train(options, folder)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def code(self, *, wait: bool = False) -> int | None:
        """Returns the exit code, negative for a signal; None while the run goes on."""
        if self._code is None and self._process is not None:
            self._code = self._process.wait() if wait else self._process.poll()
        elif self._code is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def has_begun(self) -> bool:
        """Returns whether the run has composed its configuration and written the first file."""
        return any(path.stat().st_mtime >= self.begin for path in self.folder.rglob("environment.txt"))

    def end(self, number: int) -> int:
        """Sends a signal, waits for the end, and removes what the process group has left; returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        code = self.code(wait=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # reader processes and other ranks
        assert code is not None
        return code


def wait_until_begun(run: Run) -> int | None:
    """Waits until a run writes its first file or ends; returns its exit code, None if it goes on."""
    while (code := run.code()) is None:
        with contextlib.suppress(FileNotFoundError):  # the file is being replaced
            if run.has_begun():
                return None
        time.sleep(0.01)
    return code


def interrupt(run: Run, draw: random.Random, seconds: float) -> str | None:
    """Kills a run at a random time, or while it writes a checkpoint; returns how, None if it had ended before."""
    if wait_until_begun(run) is not None:
        return None
    writing, number = draw.random() < 0.4, draw.choice([signal.SIGKILL, signal.SIGTERM])
    number = signal.SIGKILL if writing else number
    until = time.monotonic() + draw.uniform(0.0, 0.7 * seconds)  # the first run of its data is longer than the others
    while time.monotonic() < until:
        if run.code() is not None:
            return None
        time.sleep(0.002)
    deadline = time.monotonic() + 60
    while writing and not any(run.folder.rglob("*.ckpt.*.part")):
        if run.code() is not None or time.monotonic() > deadline:
            return None
    if run.code() is not None:
        return None
    run.end(number)
    return f"{signal.Signals(number).name}{' while writing' if writing else ''}"


# --- comparing ---


def difference(one: Path, two: Path, *, terminated: bool) -> str | None:
    """Returns the first thing in which two finished runs differ.

    terminated: whether a SIGTERM wrote a checkpoint, which then is one of the last that are kept; only their number is the same.
    """
    import torch

    from etude.core.differences import compare_checkpoints, compare_metrics

    for path in sorted(one.rglob("*.ckpt")):
        place = path.relative_to(one)
        if not (two / place).is_file():
            lasts = [len(list((folder / place).parent.glob("last_step_*.ckpt"))) for folder in (one, two)]
            if terminated and place.name.startswith("last_step_") and lasts[0] == lasts[1]:
                continue
            return f"{place} is missing"
        mine, theirs = (torch.load(each, map_location="cpu", weights_only=True) for each in (path, two / place))
        parts = [{name: saved.get(name) for name in COMPARED} for saved in (mine, theirs)]
        if mine["global_step"] != theirs["global_step"]:
            return f"{place} is of step {mine['global_step']} and {theirs['global_step']}"
        if found := compare_checkpoints(*parts):
            return f"{place}: {found}"
    for path in sorted(one.rglob("metrics.csv")):
        if found := compare_metrics(path, two / path.relative_to(one)):
            return f"{path.relative_to(one)}: {found}"
    for path in sorted(one.rglob("hashes.tsv")):
        if path.read_text() != (two / path.relative_to(one)).read_text():
            return "hashes.tsv differs"
    return None


def try_case(case: Case, place: Path, draw: random.Random) -> dict[str, Any] | None:
    """Runs a case without and with kills; returns its row, None if training refuses it."""
    begin = time.monotonic()
    whole = Run(case, case.options, place / "whole", place / "whole.log")
    if wait_until_begun(whole) is None:
        begin = time.monotonic()
    code = whole.code(wait=True)
    seconds = time.monotonic() - begin
    if code != 0:
        lines = (place / "whole.log").read_text().splitlines()
        refusal = next((line for line in lines if line.startswith("error: ")), f"exit code {code}: {lines[-1] if lines else ''}")
        print(f"{case.name}: not tried, {refusal[:200]}", flush=True)
        return None
    kills: list[str] = []
    killed, log = place / "killed", place / "killed.log"
    for _ in range(case.kills):
        run = Run(case, [*case.options, "autoresume=true"], killed, log)
        if (how := interrupt(run, draw, seconds)) is not None:
            kills.append(how)
        elif run.code() is None:
            run.end(signal.SIGKILL)
            kills.append("SIGKILL")
    for _ in range(3):  # SIGTERM may end a run just before its last line
        code = Run(case, [*case.options, "autoresume=true"], killed, log).code(wait=True)
        if code == 0:
            break
    found = (
        f"exit code {code}: {log.read_text()[-300:]}"
        if code
        else difference(place / "whole", killed, terminated="SIGTERM" in kills)
    )
    return {"case": case.name, "options": case.options, "kills": kills, "held": found is None, "difference": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many kills, at least; a case is finished")
    parser.add_argument("--seed", type=int, default=0, help="of the cases and of the times")
    parser.add_argument("--only", default="", help="only cases whose name contains this text")
    parser.add_argument("--accelerator", default="cpu", help="gpu: runs are repro=strict, and none is of two ranks")
    parser.add_argument("--keep", type=Path, help="keep the runs that differ here")
    parser.add_argument("--rows", type=Path, help="append a row for each case to this file")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    import pytorch_lightning  # noqa: F401  # before the first fork

    from etude.run import programs  # noqa: F401

    draw, done, wrong, refused = random.Random(args.seed + 1), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        data = {"songs": songs(Path(folder) / "songs"), "sounds": sounds(Path(folder) / "sounds")}
        for number, case in enumerate(cases(args.seed)):
            if done >= args.kills:
                break
            if args.only not in case.name:
                continue
            if args.accelerator != "cpu":
                if case.started:
                    continue
                case.options += [f"trainer.accelerator={args.accelerator}", "repro=strict"]
            root = data["sounds" if case.name.startswith("style") else "songs"]
            case.options += [f"data.root={root}", f"cache_dir={folder}/cache", f"outputs={folder}/outputs"]
            place = Path(folder) / f"case{number}"
            place.mkdir()
            row = try_case(case, place, draw)
            if row is None:
                refused += 1
            else:
                done, wrong = done + len(row["kills"]), wrong + (not row["held"])
                print(f"{case.name}: {', '.join(row['kills']) or 'ended before'}: {row['difference'] or 'the same'}", flush=True)
                shown = [option for option in row["options"] if folder not in option]
                if args.rows:
                    with args.rows.open("a") as file:
                        file.write(json.dumps({**row, "options": shown, "seed": args.seed, "number": number}) + "\n")
                if not row["held"] and args.keep:
                    shutil.copytree(place, args.keep / place.name, dirs_exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
    print(f"{done} kills, {wrong} runs differ, {refused} combinations were refused by training")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
