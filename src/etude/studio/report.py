"""The report on listening tests: shares of right answers with exact intervals, on the terminal and as an offline page."""

import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from etude.report.comparison.runs import labels
from etude.report.reports import Report, escape, format_share
from etude.studio.results import Answer, Results
from etude.studio.shares import LEVEL, Share, percent, verdict
from etude.wording import counted

NAMES = {"single": "real or generated?", "pairs": "which one is real?"}
STYLE = """
td.scale { min-width: 16rem; padding: 0 .8rem; vertical-align: middle; }
td.scale div { position: relative; height: 1.3rem; background: linear-gradient(var(--soft), var(--soft)) 50% / 1px 100% no-repeat,
  linear-gradient(var(--line), var(--line)) 0 50% / 100% 2px no-repeat; }
td.scale i { position: absolute; top: .45rem; height: .4rem; border-radius: .2rem; background: #56B4E9; }
td.scale b { position: absolute; top: .25rem; width: .8rem; height: .8rem; margin-left: -.4rem; border-radius: 50%;
  background: #0072B2; }
th.scale span { display: flex; justify-content: space-between; font-weight: 400; gap: .5rem; }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; max-width: 20rem; }
"""
HEADS = (
    "<th></th><th class=number>answers</th><th class=number>right</th><th class=number>share</th>"
    "<th class=scale><span><span>none</span><span>guessing</span><span>all</span></span></th><th>95 % interval</th>"
)
Group = tuple[str, Share]


class ListeningPage(Report):
    """A report with tables of shares."""

    def shares(self, groups: Sequence[Group], *, tested: bool) -> None:
        """Adds a table of shares, each with a picture of its interval between none and all right, and a mark at one half.

        tested: whether p-values are shown.
        """
        head = f"<thead><tr>{HEADS}{'<th class=number>p</th>' if tested else ''}</tr></thead>"
        rows = "\n".join(_row(name, share, tested=tested) for name, share in groups)
        self._add(f"<style>{STYLE}</style><div class=scroll><table>{head}<tbody>{rows}</tbody></table></div>")


def _row(name: str, share: Share, *, tested: bool) -> str:
    low, high = share.interval
    band = f'<i style="left:{100 * low:.1f}%;right:{100 * (1 - high):.1f}%"></i>'
    dot = f'<b style="left:{100 * share.share:.1f}%"></b>'
    cells = [
        f"<td>{escape(name)}</td>",
        *(f"<td class=number>{text}</td>" for text in (f"{share.answers:,}", f"{share.right:,}", percent(share.share))),
        f"<td class=scale><div>{band}{dot}</div></td><td>{percent(low)} to {percent(high)}</td>",
        f"<td class=number>{format_share(share.p_value)}</td>" if tested else "",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def show(results: Results) -> Path:
    """Prints the shares of right answers, and writes them as a page beside the file of results; returns its path.

    Raises: ValueError if there is no answer yet.
    """
    answers = results.answers()
    fresh = [answer for answer in answers if not answer.heard_before]
    if not fresh:
        what = f"all {len(answers)} answers are about music that the listener knew" if answers else "it holds no answers yet"
        raise ValueError(f"results={results.path}: {what}; take a test first, with other music: `etude listen runs=[...]`")
    tables = grouped(fresh)
    sentences = [verdict(name, share) for name, share in tables["runs"]]
    notes = remarks(answers, fresh)
    print("\n".join([*_as_text(tables), "", *sentences, "", *notes]))
    path = results.path.with_suffix(".html")
    _page(tables, sentences, notes).write(path)
    print(f"results: {path}", file=sys.stderr)
    return path


def grouped(answers: Sequence[Answer]) -> dict[str, list[Group]]:
    """Returns the shares of right answers of all, and by run, kind of question, genre and listener.

    A table that would only repeat another is left out.
    """
    folders = list(dict.fromkeys(Path(answer.run_folder) for answer in answers))
    names = dict(zip(map(str, folders), labels(folders), strict=True))
    runs = _by(answers, lambda answer: names[answer.run_folder])
    tables = {
        "all": [("all answers", _share(answers))],
        "runs": runs,
        "questions": _by(answers, lambda answer: NAMES[answer.kind]),
        "genres": _by(answers, lambda answer: answer.genre or "not known"),
        "listeners": _by(answers, lambda answer: answer.listener),
    }
    singles = [answer for answer in answers if answer.kind == "single"]
    tables["music"] = _by(singles, lambda answer: "real music" if answer.right_answer == "real" else "generated music")
    told = {"all": len(runs) > 1, "runs": True}
    return {name: rows for name, rows in tables.items() if told.get(name, len(rows) > 1)}


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
        lines.append(
            f"Even of runs that sound like real music, about one in {round(1 / LEVEL)} seems to be told from it by luck."
        )
    lines.append("The interval is exact (Clopper and Pearson 1934) and takes answers as independent, also those of one listener.")
    return lines


TITLES = {
    "all": "All answers", "runs": "By run", "questions": "By kind of question", "genres": "By genre", "listeners": "By listener",
    "music": "By what was heard (single excerpts)",
}  # fmt: skip


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
        page.shares(rows, tested=title != "music")  # of one side alone, a habit of answering is no sign of hearing
    page.heading("About these numbers")
    for line in notes:
        page.text(line)
    page.text("p: the chance that guessing alone gives a result at least as far from half, in either direction.")
    return page
