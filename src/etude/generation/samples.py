"""Write samples of a language model as MIDI, audio and piano rolls, with a report."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from symusic import Score

from etude.core.protocols import Composes, Infills
from etude.data.scores.reading import read_prompt
from etude.generation.ranking import Kept, best_of_each, ranking, tell_ranking
from etude.generation.requests import asked_and_got, outside, told_of_key
from etude.generation.writing import described, write_sample
from etude.music.passages import Passage, passage_of
from etude.render.scores import render
from etude.render.synthesizers import Synthesizer, check_synthesizer
from etude.report.media import write_table
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
    labels, _, _, notes = _request(options, task)
    ranking(options, task, labels=labels)
    return notes


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
    best_of: int = 1,
    rank_by: str | None = None,
    rank_order: str | None = None,
    real: str | None = None,
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
        best_of: candidates drawn for each sample, of which the best by `rank_by` is kept; 1 keeps what is drawn.
        rank_by: likelihood (per token, under the model), distance (to the music in `real`), or a metric of a piece such as
            scale_consistency, see `etude.generation.ranking.UNITS`.
        rank_order: highest or lowest; None takes the end that is better, where that is clear.
        real: a folder of scores, for rank_by=distance.
        audio: whether to render audio.
        soundfont: an .sf2 file; None takes the one that comes with a dependency.
        synthesizer: tinysoundfont, or fluidsynth where the system has it.

    Returns:
        The MIDI files.

    Raises:
        ValueError: a label that the model or its tokenizer can't be asked for, a prompt that can't be read or represented,
            a number out of its range, a metric that there is not, or fluidsynth where it is not installed.
    """
    # before samples are drawn, which takes longer
    check_rendering({"audio": audio, "soundfont": soundfont, "synthesizer": synthesizer})
    wish = {"genre": genre, "key": key, "tempo_bpm": tempo_bpm, "metre": metre, "programs": programs}
    choice = {"best_of": best_of, "rank_by": rank_by, "rank_order": rank_order, "real": real, "num_bars": num_bars}
    asked, opening, passage, notes = _request(
        {**wish, "num_samples": num_samples, "prompt": prompt, "infill": infill, **choice}, task
    )
    ranked = ranking(choice, task, labels=asked)
    shown = {**asked, "bars": num_bars, "prompt": prompt, **{f"infill.{k}": v for k, v in (infill or {}).items()}}
    wishes = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    count = "1 sample" if num_samples == 1 else f"{num_samples} samples"
    drawing = f"temperature {temperature}, top-k {top_k or 'off'}, top-p {top_p}, min-p {min_p}, seed {seed}"
    drawing += f"; of {best_of} candidates the one with the {ranked.order} {ranked.metric}" if ranked is not None else ""
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
    kept: list[Kept] = []

    def draw(size: int, start: int) -> Sequence[Score]:
        where = {"num_bars": num_bars} if passage is None else {"passage": passage}
        return _draw(
            task, size, labels=asked, prompt=opening, **where, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed + start,
        )  # fmt: skip

    try:
        for best in best_of_each(_in_batches(draw, num_samples * best_of), ranked, count=best_of):
            kept.append(best)
            files.append(write_sample(best.score, out / f"{len(files):03d}.mid", pieces, play if audio else None))
    finally:  # Ctrl-C keeps what is done
        wanted = {**asked, "num_bars": num_bars} if num_bars else asked
        drawn = [best.score for best in kept]
        rows = [described(best, path, wanted, ranked) for best, path in zip(kept, files, strict=False)]
        write_table(out, rows)
        if ranked is not None and kept:
            tell_ranking(ranked, kept, [row.name for row in rows], report)
        if shares := asked_and_got(wanted, drawn):
            report.heading("Asked and got").table(("label", "asked", "got most often", "samples that have it"), shares)
            for label, value, often, share in shares:
                print(f"asked {label} {value}: {share} have it, most often {often}", file=sys.stderr)
        lines = [] if opening is None or passage is None or not drawn else [outside(opening, drawn, passage)]
        lines += [] if key is None else told_of_key(key, drawn, prompt=prompt is not None)
        for line in lines:
            report.text(line)
            print(line, file=sys.stderr)
        end_report(report.extend(pieces), folder)
    return files


def _in_batches(draw: Callable[[int, int], Sequence[Score]], count: int) -> Iterator[Score]:
    """Yields `count` scores; `draw` gets the size of each batch and the number of its first score."""
    for start in range(0, count, BATCH):
        yield from draw(min(BATCH, count - start), start)


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
