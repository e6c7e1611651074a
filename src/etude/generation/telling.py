"""The frame of a report on samples: what was asked for, how they were drawn, and whether it came out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from symusic import Score

from etude.generation.asking import Request, told_prompts
from etude.generation.forms import form_rows, tell_plans
from etude.generation.heard import Portion, heard_rows, portion
from etude.generation.requests import asked_and_got, outside, told_of_key
from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.similarity import repeated_passages
from etude.music.score import num_notes
from etude.report.reports import Report
from etude.report.run_page import begin_report
from etude.wording import counted


def file_names(request: Request, num_samples: int) -> list[str]:
    """Returns the names of the samples, without suffix: 000, 001, ..., or song-000, ... for each of several prompts."""
    names = [prompt.name for prompt in request.prompts] or [""]
    return [f"{name}-{number:03d}" if name else f"{number:03d}" for name in names for number in range(num_samples)]


def begin(
    request: Request, folder: Path, *, count: int, num_bars: int | None, prompt: str | Sequence[str] | None,
    infill: Mapping[str, Any] | None, drawing: str,
) -> Report:  # fmt: skip
    """Begins the report of `count` samples, and tells what can't be asked exactly, and which prompts are left out."""
    given = prompt if prompt is None or isinstance(prompt, str) else ", ".join(prompt)
    shown = {**request.labels, "bars": num_bars, "prompt": given, **{f"infill.{k}": v for k, v in (infill or {}).items()}}
    wishes = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    facts = [("asked for", wishes or "nothing"), ("drawn with", drawing)]
    report = begin_report(f"{counted(count, 'sample')}: {wishes or 'nothing asked for'}", folder, facts=facts)
    for line in request.notes:
        print(line, file=sys.stderr)
        report.text(line)
    rows = told_prompts(request)
    if len(rows) > 1 or request.left_out:
        report.heading("Prompts").table(("prompt", "file", "bars"), rows)
    for line in request.left_out:
        report.text(f"Left out: {line}")
    return report


def tell_repetition(length: int, drawn: Sequence[Score], report: Report) -> None:
    """Tells on the terminal and in the report how many passages of `length` notes a track plays again."""
    counts = [repeated_passages(NoteArray.from_score(score), length=length) for score in drawn]
    repeated, every = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    line = f"passages of {length} notes that a track has played before: {repeated} of {every}"
    report.text(line)
    print(line, file=sys.stderr)


def prompts_of(request: Request, count: int) -> list[Score] | list[None]:
    """Returns the prompt of each of `count` samples; None for each without prompts."""
    per_prompt = max(1, -(-count // max(1, len(request.prompts))))
    return [score for score in request.scores for _ in range(per_prompt)] or [None] * count


def portions(request: Request, drawn: Sequence[Score], *, num_bars: int | None) -> list[Portion | None]:
    """Returns what was written of each sample; None of one without notes."""
    prompts = prompts_of(request, len(drawn))
    how: dict[str, Any] = {"num_bars": num_bars, "passage": request.passage, "programs": request.labels.get("programs")}
    return [
        portion(score, prompt=prompt, **how) if num_notes(score) else None for score, prompt in zip(drawn, prompts, strict=False)
    ]


def tell_requests(
    request: Request, drawn: Sequence[Score], names: Sequence[str], report: Report, *, num_bars: int | None
) -> None:
    """Tells on the terminal and in the report which samples have what was asked for. names: of the samples."""
    wanted = {**request.labels, "num_bars": num_bars} if num_bars else request.labels
    pieces = [piece for piece in portions(request, drawn, num_bars=num_bars) if piece is not None]
    shares = asked_and_got(wanted, drawn) + heard_rows(request.labels, pieces) + form_rows(wanted, drawn)
    if shares:
        report.heading("Asked and got").table(("label", "asked", "got most often", "samples that have it"), shares)
        for label, value, often, share in shares:
            print(f"asked {label} {value}: {share} have it, most often {often}", file=sys.stderr)
    lines = [] if request.passage is None or not drawn else [outside(request.scores[0], drawn, request.passage)]
    lines += tell_plans(drawn, prompts_of(request, len(drawn)), names, report)
    if "key" in request.labels:
        lines += told_of_key(
            request.labels["key"], drawn, prompt=bool(request.prompts), names=names, chords="chords" in request.labels
        )
    for line in lines:
        report.text(line)
        print(line, file=sys.stderr)
