"""Write samples of a language model as MIDI, audio and piano rolls, with a report."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from symusic import Score

from etude.core.protocols import Composes, Infills
from etude.data.scores.reading import read_prompt
from etude.generation.requests import COMPUTED, asked_and_got, bars_begun, outside, property_of, told_of_key
from etude.metrics.scores.tables import piece_metrics
from etude.music.passages import Passage, passage_of
from etude.music.score import num_notes
from etude.music.theory import estimate_key
from etude.render.scores import piano_roll, render, write_audio
from etude.render.synthesizers import Synthesizer, check_synthesizer
from etude.report.media import Sample, write_table
from etude.report.reports import Report
from etude.report.run_page import begin_report, end_report
from etude.wording import counted

Writer = TypeVar("Writer", bound=Callable[..., Any])
ASKED = ("genre", "key", "tempo_bpm", "metre", "programs")
BATCH = 16  # samples drawn at once; what is drawn is written before the next batch begins


def checked_ahead(
    check: Callable[[Mapping[str, Any]], None],
    check_requests: Callable[[Mapping[str, Any], Composes], object],
    few: Mapping[str, Any],
) -> Callable[[Writer], Writer]:
    """Marks a function that writes samples as one whose options can be tested before training.

    check: whether they can be met on this machine; see `ChecksOptions`.
    check_requests: whether a model can be asked for them; see `ChecksRequests`.
    few: how much is enough while a model trains; see `FewSamples`.
    """

    def mark(function: Writer) -> Writer:
        function.__dict__.update(check=check, check_requests=check_requests, few=few)
        return function

    return mark


def check_rendering(options: Mapping[str, Any]) -> None:
    """Raises ValueError where audio is asked for and can't be rendered here: no such soundfont, or no synthesizer."""
    if options.get("audio", True):
        soundfont = options.get("soundfont")
        check_synthesizer(options.get("synthesizer", "tinysoundfont"), Path(soundfont) if soundfont else None)


def check_requests(options: Mapping[str, Any], task: Composes) -> list[str]:
    """What the model can't be asked exactly, one line each; options are those of `write_samples`.

    Raises ValueError for what can't be asked at all, a prompt that can't be read, or a number out of its range.
    """
    return _request(options, task)[-1]


def _request(options: Mapping[str, Any], task: Composes) -> tuple[dict[str, Any], Score | None, Passage | None, list[str]]:
    """The labels asked for, the prompt, the passage to fill in, and what of them can't be asked exactly."""
    for name in ("num_samples", "num_bars"):
        if options.get(name) is not None and options[name] < 1:
            raise ValueError(f"{name} is {options[name]}, must be at least 1")
    prompt = options.get("prompt")
    opening = read_prompt(Path(prompt).expanduser()) if prompt is not None else None
    labels = {name: options[name] for name in ASKED if options.get(name) is not None}
    passage, notes = _passage(options, task, opening)
    continued = opening if passage is None else None
    return labels, opening, passage, [*notes, *task.check_request(labels, prompt=continued, num_bars=options.get("num_bars"))]


def _passage(options: Mapping[str, Any], task: Composes, score: Score | None) -> tuple[Passage | None, list[str]]:
    """The passage that is to be filled in, None if the score is to be continued; and what the task does not see of the rest."""
    wanted = {name: value for name, value in (options.get("infill") or {}).items() if value is not None}
    if not wanted:
        return None, []
    if score is None:
        raise ValueError("infill needs a score: prompt=my.mid infill.bars=[4,8]")
    if given := [name for name in ("num_bars", "key", "tempo_bpm", "metre", "programs") if options.get(name) is not None]:
        raise ValueError(f"{given[0]} can't be asked for with infill, where the piece has its own; leave {given[0]} out")
    passage = passage_of(score, bars=wanted.get("bars"), tracks=wanted.get("tracks"))
    if not isinstance(task, Infills):
        raise ValueError(
            f"infill: {type(task).__name__} can't fill passages in; take a model that was trained with tokenizer=remi"
        )
    return passage, task.check_infill(score, passage)


@checked_ahead(check_rendering, check_requests, few={"num_samples": 2, "max_new_tokens": 512})
def write_samples(
    *,
    task: Composes,
    folder: Path,
    datamodule: object = None,
    num_samples: int = 4,
    genre: str | None = None,
    key: str | None = None,
    tempo_bpm: float | None = None,
    metre: str | None = None,
    num_bars: int | None = None,
    programs: Sequence[int] | None = None,
    prompt: str | None = None,
    infill: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int = 2048,
    seed: int = 0,
    audio: bool = True,
    soundfont: str | None = None,
    synthesizer: Synthesizer = "tinysoundfont",
) -> list[Path]:
    """Draws pieces and writes `samples/NNN.mid`, `.wav` and `.png` for each, `samples/samples.csv` and `report.html`.

    Args:
        task: a trained model.
        folder: the run's folder.
        datamodule: not used, a language model needs no data to sample.
        genre, key, tempo_bpm, metre, num_bars, programs: what is asked for, as control tokens; None leaves it open.
        prompt: a score file to continue, or to rewrite a passage of.
        infill: which passage, {"bars": [first, last], "tracks": [...]}, see `etude.music.passages.passage_of`.
        temperature, top_k, top_p, min_p: see `etude.models.symbolic.sampling.distribution`.
        max_new_tokens: most tokens of a sample.
        seed: the same seed gives the same samples.
        audio: whether to render audio.
        soundfont: an .sf2 file; None takes the one that comes with a dependency.
        synthesizer: tinysoundfont, or fluidsynth where the system has it.

    Returns:
        The MIDI files.

    Raises:
        ValueError: a label that the model or its tokenizer can't be asked for, a prompt that can't be read or represented,
            or a number out of its range, or fluidsynth where it is not installed.
    """
    # before samples are drawn, which takes longer
    check_rendering({"audio": audio, "soundfont": soundfont, "synthesizer": synthesizer})
    wish = {"genre": genre, "key": key, "tempo_bpm": tempo_bpm, "metre": metre, "programs": programs}
    asked, opening, passage, notes = _request(
        {**wish, "num_samples": num_samples, "num_bars": num_bars, "prompt": prompt, "infill": infill}, task
    )
    shown = {**asked, "bars": num_bars, "prompt": prompt, **{f"infill.{k}": v for k, v in (infill or {}).items()}}
    wishes = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    count = "1 sample" if num_samples == 1 else f"{num_samples} samples"
    drawing = f"temperature {temperature}, top-k {top_k or 'off'}, top-p {top_p}, min-p {min_p}, seed {seed}"
    report = begin_report(
        f"{count}: {wishes or 'nothing asked for'}", folder, facts=[("asked for", wishes or "nothing"), ("drawn with", drawing)]
    )
    pieces = Report("")
    for line in notes:
        print(line, file=sys.stderr)
        report.text(line)
    play = functools.partial(render, soundfont=Path(soundfont) if soundfont else None, synthesizer=synthesizer)
    out = folder / "samples"
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    drawn: list[Score] = []
    try:
        for start in range(0, num_samples, BATCH):
            size = min(BATCH, num_samples - start)
            where = {"num_bars": num_bars} if passage is None else {"passage": passage}
            scores = _draw(
                task, size, labels=asked, prompt=opening, **where, max_new_tokens=max_new_tokens,
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed + start,
            )  # fmt: skip
            for score in scores:
                drawn.append(score)
                files.append(_write(score, out / f"{len(files):03d}.mid", pieces, play if audio else None))
    finally:  # Ctrl-C keeps what is done
        wanted = {**asked, "num_bars": num_bars} if num_bars else asked
        write_table(out, [_described(score, path, wanted) for score, path in zip(drawn, files, strict=False)])
        if rows := asked_and_got(wanted, drawn):
            report.heading("Asked and got").table(("label", "asked", "got most often", "samples that have it"), rows)
            for label, value, often, share in rows:
                print(f"asked {label} {value}: {share} have it, most often {often}", file=sys.stderr)
        lines = [] if opening is None or passage is None or not drawn else [outside(opening, drawn, passage)]
        lines += [] if key is None else told_of_key(key, drawn, prompt=prompt is not None)
        for line in lines:
            report.text(line)
            print(line, file=sys.stderr)
        end_report(report.extend(pieces), folder)
    return files


def _draw(task: Composes, size: int, **options: Any) -> Sequence[Score]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} tokens each"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sampling", total=None)

        def begin_round(number: int, most: int, count: int) -> None:
            if number > 1:  # the first draws them all, whether there is a second or not
                told = f"sampling again, round {number} of {most} at most, {counted(count, 'sample')} not in the key yet"
                progress.update(bar, completed=0, description=told)

        def step(tokens: int) -> None:
            progress.update(bar, completed=tokens)

        if "passage" in options and isinstance(task, Infills):
            return task.infill(num_samples=size, on_step=step, **options)
        return task.sample(num_samples=size, on_step=step, on_round=begin_round, **options)


def _write(score: Score, path: Path, report: Report, play: Callable[[Score], np.ndarray] | None) -> Path:
    score.dump_midi(path)
    if num_notes(score) == 0:  # of a model that has learnt next to nothing yet
        report.heading(f"{path.stem}: no notes")
        report.text("The model wrote rests and ends only; train it longer, or raise the temperature.")
        print(f"{path}: no notes", file=sys.stderr)
        return path
    title = f"{path.stem}: {counted(bars_begun(score), 'bar')}, {counted(num_notes(score), 'note')}, {estimate_key(score)}"
    piano_roll(score, path.with_suffix(".png"), title=title)
    report.heading(title)
    if play is not None:
        samples = play(score)
        write_audio(path.with_suffix(".wav"), samples, 44_100)
        listen = path.with_suffix(".mp3")
        write_audio(listen, samples, 44_100)
        report.audio(listen)
        listen.unlink()  # it lives in the report
    report.image(path.with_suffix(".png"), alt=f"Piano roll of sample {title}")
    files = [path] if play is None else [path, path.with_suffix(".wav")]
    report.links([(f"samples/{file.name}", file.name) for file in files])
    print(path, file=sys.stderr)
    return path


def _described(score: Score, path: Path, asked: Mapping[str, Any]) -> Sample:
    """Returns the row of a sample in the table: its files, what was asked and came out, and its metrics."""
    files = {
        kind: file if (file := path.with_suffix(suffix)).is_file() else None
        for kind, suffix in (("picture", ".png"), ("sound", ".wav"), ("score", ".mid"))
    }
    values: dict[str, object] = {"notes": num_notes(score)}
    for label in (*asked, *(label for label in ("num_bars", "key", "tempo_bpm") if label not in asked)):
        if label in asked:
            values[f"asked {label}"] = str(asked[label])
        if label in COMPUTED and num_notes(score):
            values[f"got {label}"] = property_of(label, score)
    metrics = piece_metrics(score) if num_notes(score) else {}
    values |= {name: round(value, 4) for name, value in metrics.items() if value == value}  # NaN: not defined for this piece
    return Sample(path.stem, **files, values=values)
