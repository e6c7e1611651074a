"""The report on listening tests: shares of right answers with exact intervals, on the terminal and as an offline page."""

import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from etude.report.comparison.runs import labels
from etude.report.reports import Report, escape
from etude.studio.results import Answer, Results
from etude.studio.shares import LEVEL, Share, percent, verdict
from etude.wording import counted

NAMES = {"single": "real or generated?", "pairs": "which one is real?"}
HEADS = ("", "answers", "right", "share", "95 % interval", "p")
STYLE = """
.shares { display: grid; grid-template-columns: minmax(8rem, 16rem) 1fr; gap: .5rem 1rem; align-items: center; max-width: 46rem;
  margin: 1rem 0 .3rem; }
.shares span { overflow-wrap: anywhere; }
.scale { position: relative; height: 1.3rem; background: linear-gradient(var(--soft), var(--soft)) 50% / 1px 100% no-repeat,
  linear-gradient(var(--band), var(--band)) 0 50% / 100% .4rem no-repeat; }
.scale i { position: absolute; top: .45rem; height: .4rem; border-radius: .2rem; background: #56B4E9; }
.scale b { position: absolute; top: .25rem; width: .8rem; height: .8rem; margin-left: -.4rem; border-radius: 50%;
  background: #0072B2; }
.legend { display: flex; justify-content: space-between; color: var(--soft); font-size: .8rem; }
"""
Group = tuple[str, Share]


class ListeningPage(Report):
    """A report with pictures of shares."""

    def pictured(self, groups: Sequence[Group]) -> None:
        """Adds a line for each share, from none to all right, with its interval and a mark at one half."""
        rows = "".join(f"<span>{escape(name)}</span>{_scale(share)}" for name, share in groups if share.answers)
        legend = '<span></span><div class="legend"><span>none right</span><span>guessing</span><span>all right</span></div>'
        self._add(f'<style>{STYLE}</style><div class="shares">{rows}{legend}</div>')


def _scale(share: Share) -> str:
    low, high = share.interval
    band = f'<i style="left:{100 * low:.1f}%;right:{100 * (1 - high):.1f}%"></i>'
    return f'<div class="scale" title="{escape(share.told())}">{band}<b style="left:{100 * share.share:.1f}%"></b></div>'


def show(results: Results) -> Path:
    """Prints the shares of right answers, and writes them as a page beside the file of results; returns its path.

    Raises: ValueError if there is no answer yet.
    """
    answers = results.answers()
    fresh = [answer for answer in answers if not answer.heard_before]
    if not fresh:
        raise ValueError(f"results={results.path}: it holds no answers yet; take a test first: `etude listen runs=[...]`")
    tables = grouped(fresh)
    sentences = [verdict(name, share) for name, share in tables["runs"]]
    notes = remarks(answers, fresh)
    print("\n".join([*_as_text(tables), "", *sentences, "", *notes]))
    path = results.path.with_suffix(".html")
    _page(tables, sentences, notes).write(path)
    print(f"results: {path}", file=sys.stderr)
    return path


def grouped(answers: Sequence[Answer]) -> dict[str, list[Group]]:
    """Returns the shares of right answers of all, and by run, kind of question, genre and listener; without tables of one row.

    The table of runs is always there.
    """
    folders = list(dict.fromkeys(Path(answer.run_folder) for answer in answers))
    names = dict(zip(map(str, folders), labels(folders), strict=True))
    tables = {
        "all": [("all answers", _share(answers))],
        "runs": _by(answers, lambda answer: names[answer.run_folder]),
        "questions": _by(answers, lambda answer: NAMES[answer.kind]),
        "genres": _by(answers, lambda answer: answer.genre or "not known"),
        "listeners": _by(answers, lambda answer: answer.listener),
    }
    singles = [answer for answer in answers if answer.kind == "single"]
    tables["music"] = _by(singles, lambda answer: "real music" if answer.right_answer == "real" else "generated music")
    return {name: rows for name, rows in tables.items() if name in ("all", "runs") or len(rows) > 1}


def _by(answers: Sequence[Answer], key: Callable[[Answer], Hashable]) -> list[Group]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(str(key(answer)), []).append(answer)
    return [(name, _share(own)) for name, own in sorted(groups.items())]


def _share(answers: Sequence[Answer]) -> Share:
    return Share(sum(answer.is_right for answer in answers), len(answers))


def remarks(answers: Sequence[Answer], fresh: Sequence[Answer]) -> list[str]:
    """Returns what a reader needs to know about these numbers.

    fresh: the answers about music that the listener had not heard in an earlier session, which are counted.
    """
    sessions = len({answer.session for answer in fresh})
    listeners = counted(len({answer.listener for answer in fresh}), "listener")
    lines = [
        f"Counted are {counted(len(fresh), 'answer')} of {listeners} in {counted(sessions, 'session')}; guessing gives half."
    ]
    if left := len(answers) - len(fresh):
        more = counted(left, "further answer is", "further answers are")
        lines.append(f"{more} about music that the listener knew from an earlier session, and not counted.")
    runs = len({answer.run_folder for answer in fresh})
    if runs > 1:
        lines.append(f"Of runs that nobody can tell apart, about one in {round(1 / LEVEL)} seems to be told apart by luck.")
    lines.append("The interval is exact (Clopper and Pearson 1934) and takes answers as independent, also those of one listener.")
    return lines


TITLES = {
    "all": "All answers", "runs": "By run", "questions": "By kind of question", "genres": "By genre", "listeners": "By listener",
    "music": "By what was heard (single excerpts)",
}  # fmt: skip


def _cells(share: Share) -> tuple[object, ...]:
    low, high = share.interval
    return share.answers, share.right, percent(share.share), f"{percent(low)} to {percent(high)}", share.p_value


def _as_text(tables: dict[str, list[Group]]) -> list[str]:
    width = max(len(name) for rows in tables.values() for name, _ in rows)
    lines: list[str] = []
    for title, rows in tables.items():
        lines += ["", TITLES[title]]
        for name, share in rows:
            low, high = share.interval
            lines.append(f"  {name:{width}}  {share.told()}, 95 % interval {percent(low)} to {percent(high)}")
    return lines[1:]


def _page(tables: dict[str, list[Group]], sentences: Sequence[str], notes: Sequence[str]) -> Report:
    page = ListeningPage("Listening test: can listeners tell real from generated music?")
    for sentence in sentences:
        page.text(sentence)
    for title, rows in tables.items():
        page.heading(TITLES[title])
        page.pictured(rows)
        page.table(HEADS, [(name, *_cells(share)) for name, share in rows])
    page.heading("About these numbers")
    for line in notes:
        page.text(line)
    page.text("p: the chance that guessing alone gives a result at least as far from half, in either direction.")
    return page
