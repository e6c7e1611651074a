"""Whether samples have the form that was asked for and keep to their plans, read off their notes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from symusic import Score

from etude.metrics.scores.notes import NoteArray
from etude.metrics.scores.plans import Agreement, agreement, bar_similarities
from etude.music.form import Form, bar_letters, marked_plan, parse_form, section_letters, shown
from etude.music.score import bar_ticks, num_notes
from etude.report.reports import Report

COLUMNS = ("sample", "plan of the bars", "bars as they came", "same letter, alike", "different letters, alike", "Rand index")


def form_of(labels: Mapping[str, Any]) -> Form | None:
    """Returns the form that was asked for, by form, form_bars and num_bars; None if none was."""
    text = labels.get("form")
    return None if text is None else parse_form(text, bars=labels.get("form_bars"), num_bars=labels.get("num_bars"))


def form_got(score: Score, form: Form) -> str:
    """Returns the letters of a score's sections, as long as those of a form, in as many of them as were asked for."""
    return section_letters(bar_similarities(NoteArray.from_score(score), num_bars=form.num_bars), bars=form.bars)


def form_rows(labels: Mapping[str, Any], drawn: Sequence[Score]) -> list[tuple[str, str, str, str]]:
    """Returns the row (form, asked, got most often, share that has it), as `asked_and_got` does; none without a form."""
    form, sounding = form_of(labels), [score for score in drawn if num_notes(score)]
    if form is None or not sounding:
        return []
    wanted = "".join(chr(ord("A") + number) for number in _numbers(form.sections))
    got = Counter(form_got(score, form) for score in sounding)
    return [("form", str(form), got.most_common(1)[0][0], f"{got[wanted] / len(sounding):.0%} of {len(sounding)}")]


def _numbers(sections: str) -> list[int]:
    """The letters of sections as numbers in the order of first appearance: those of BBA are 0, 0 and 1."""
    order = list(dict.fromkeys(sections))
    return [order.index(letter) for letter in sections]


def plan_kept(score: Score, *, prompt: Score | None = None) -> Agreement | None:
    """Returns how a score's notes agree with the plan in its markers, behind its prompt; None for one without a plan."""
    plan = marked_plan(score)
    if not plan or not num_notes(score):
        return None
    first = 0 if prompt is None else len(bar_ticks(prompt))
    return agreement(plan, bar_similarities(NoteArray.from_score(score), num_bars=len(plan)), first=first)


def plan_values(labels: Mapping[str, Any], score: Score) -> dict[str, object]:
    """Returns what one sample planned and has: the values of its row in the table of samples."""
    plan, found = marked_plan(score), dict[str, object]()
    form = form_of(labels)
    if form is not None and num_notes(score):
        found["got form"] = form_got(score, form)
    if plan and num_notes(score):
        found |= {"plan": shown(plan), "bars as they came": _bars(score, len(plan))}
    return found


def _bars(score: Score, count: int) -> str:
    return shown(bar_letters(bar_similarities(NoteArray.from_score(score), num_bars=count)))


def tell_plans(drawn: Sequence[Score], prompts: Sequence[Score | None], names: Sequence[str], report: Report) -> list[str]:
    """Adds a table of the samples' plans and of their bars to the report; returns a line that sums it up, none without plans."""
    rows, every = [], []
    for name, score, prompt in zip(names, drawn, prompts, strict=False):
        kept = plan_kept(score, prompt=prompt)
        if kept is not None:
            plan = marked_plan(score)
            every.append(kept)
            shares = (_of(kept.same_alike, kept.same), _of(kept.different_alike, kept.different))
            rows.append((name, shown(plan), _bars(score, len(plan)), *shares, f"{kept.rand_index:.2f}"))
    if not rows:
        return []
    report.heading("Plans").table(COLUMNS, rows)
    total = Agreement(*(sum(column) for column in zip(*every, strict=True)))
    return [
        f"plan kept: of the pairs of bars with the same letter {_of(total.same_alike, total.same)} are alike, of those with "
        f"different letters {_of(total.different_alike, total.different)}"
    ]


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"
