"""compare.html: runs side by side in one page without network or scripts; a click on a run's name hides it everywhere."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etude.report.comparison.charts import colour, line_chart
from etude.report.comparison.runs import Run
from etude.report.comparison.tables import (
    MEASURED,
    MISSING,
    best_places,
    differences,
    higher_is_better,
    metric_names,
    short_names,
    values,
)
from etude.report.files import write_atomically
from etude.report.media import Sample
from etude.report.reports import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Report, data_uri, escape, format_cell

MOST_ROWS = 40  # of the options that differ; the rest is folded away
STYLE = """
main { max-width: 110rem; }
.runs { position: sticky; top: 0; z-index: 3; background: var(--paper); padding: .5rem 0; border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .85rem; max-height: 30vh; overflow-y: auto; }
.runs label { cursor: pointer; display: inline-flex; align-items: center; gap: .4rem; }
.chip { display: inline-flex; align-items: center; justify-content: center; min-width: 1.5em; height: 1.5em; padding: 0 .3em;
  border-radius: .75em; color: #fff; font-size: .78rem; font-weight: 600; flex: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; margin: 1rem 0; }
.charts figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem .6rem .2rem; }
.charts figcaption { color: #1d2126; font-size: .9rem; font-weight: 600; margin: 0 0 .2rem .3rem; }
figure > svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: #4a525c; }
svg .grid { stroke: #e3e5e8; }
svg .line polyline { stroke-width: 1.8; stroke-linejoin: round; }
svg .line:hover polyline { stroke-width: 4; }
.best { font-weight: 700; background: color-mix(in srgb, #009E73 18%, transparent); }
.best::after { content: " ★"; color: #009E73; }
.step { color: var(--soft); font-size: .8em; }
table.wide td, table.wide th { max-width: 22rem; overflow-wrap: anywhere; }
table.wide td:first-child, table.wide th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
td code { font: .85rem ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
td.none { color: var(--soft); }
.samples { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(17rem, 26rem); gap: .9rem; overflow-x: auto;
  padding-bottom: .6rem; }
.samples > div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem; font-size: .85rem; min-width: 0; }
.samples img { width: 100%; height: auto; background: #fff; border-radius: 4px; }
.samples audio { width: 100%; height: 2.3rem; margin-top: .4rem; }
.samples p { margin: .3rem 0 0; color: var(--soft); }
.note { color: var(--soft); }
"""


class ComparisonPage(Report):
    """A report on several runs; each part that belongs to a run has its class, r0, r1, ..."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(f"{len(runs)} runs compared")
        self.runs, self.names = list(runs), short_names(runs)

    def chip(self, place: int) -> str:
        """Returns the coloured number of a run."""
        return f'<span class="chip" style="background:{colour(place)}">{place + 1}</span>'

    def legend(self) -> None:
        """Adds the bar with a box for each run, which hides it where it is not ticked."""
        rules = "".join(f"body:has(#show{place}:not(:checked)) .r{place} {{ display: none; }}" for place in range(len(self.runs)))
        boxes = "".join(
            f'<label><input type="checkbox" id="show{place}" checked>{self.chip(place)} {escape(name)}</label>'
            for place, name in enumerate(self.names)
        )
        self._add(f'<style>{STYLE}{rules}</style><div class="runs">{boxes}</div>')

    def rows_of_runs(self, columns: Sequence[str], cells: Sequence[Sequence[str]], *, numeric: set[int] | None = None) -> None:
        """Adds a table with a row for each run; cells are HTML, which the caller has escaped."""
        right = numeric or set()
        head = "".join(f"<th{' class=number' if i in right else ''}>{escape(name)}</th>" for i, name in enumerate(columns))
        body = "".join(
            f'<tr class="r{place}">{"".join(_cell(text, right=i in right) for i, text in enumerate(row))}</tr>\n'
            for place, row in enumerate(cells)
        )
        self._add(f'<div class="scroll"><table class="wide"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')

    def columns_of_runs(self, rows: Sequence[tuple[str, Sequence[Any]]], *, heading: str) -> str:
        """Returns a table with a column for each run."""
        head = "".join(
            f'<th class="r{place}" title="{escape(run.label)}">{self.chip(place)}</th>' for place, run in enumerate(self.runs)
        )
        body = "".join(
            f"<tr><td><code>{escape(key)}</code></td>"
            + "".join(
                f'<td class="r{place}{" none" if value is MISSING else ""}">{escape(_shown(value))}</td>'
                for place, value in enumerate(found)
            )
            + "</tr>\n"
            for key, found in rows
        )
        return (
            f'<div class="scroll"><table class="wide"><thead><tr><th>{heading}</th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def folded(self, summary: str, content: str) -> None:
        """Adds HTML that is folded away until the reader opens it."""
        self._add(f"<details><summary>{escape(summary)}</summary>{content}</details>")

    def add(self, content: str) -> None:
        """Adds HTML as it is."""
        self._add(content)


def write_page(path: Path, runs: Sequence[Run], *, num_samples: int, seconds: float) -> Path:
    """Writes the page that compares `runs`; returns its path.

    num_samples: samples shown of each run. seconds: how much of each sound is kept in the page.
    """
    page = ComparisonPage(runs)
    page.legend()
    _overview(page, path.parent)
    _metrics(page)
    _options(page)
    _curves(page)
    _samples(page, num_samples=num_samples, seconds=seconds)
    _environments(page)
    return write_atomically(path, page.html())


def _overview(page: ComparisonPage, folder: Path) -> None:
    rows = []
    for place, (run, name) in enumerate(zip(page.runs, page.names, strict=True)):
        most = run.options.get("trainer.max_steps", run.options.get("max_steps"))
        steps = f"{run.steps:,}" + (f" of {most:,}" if isinstance(most, int) and most > run.steps else "")
        report = run.folder / "report.html"
        link = f'<a href="{escape(report.resolve().as_uri())}">report</a>' if report.is_file() else ""
        label = f"{escape(name)}<br><span class=step>{escape(run.label)}</span>" if name != run.label else escape(name)
        rows.append(
            [page.chip(place), label, escape(run.task), steps, link, f'<span class="note">{escape("; ".join(run.notes))}</span>']
        )
    page.heading("Runs")
    page.rows_of_runs(["", "run", "task", "steps", "", "notes"], rows, numeric={3})


def _metrics(page: ComparisonPage) -> None:
    names = metric_names(page.runs)
    if not names:
        page.heading("Metrics").text("No run has logged a metric.")
        return
    columns, cells = ["", "run"], [[page.chip(place), escape(name)] for place, name in enumerate(page.names)]
    for name in names:
        found, higher = values(page.runs, name), higher_is_better(name, page.runs)
        if higher is not None:
            columns.append(f"{name} best {'↑' if higher else '↓'}")
            stars = best_places([value.best if value else None for value in found], higher=higher)
            for place, value in enumerate(found):
                text = "" if value is None else f"{format_cell(value.best)} <span class=step>@ {value.best_step:,}</span>"
                cells[place].append(f"best:{text}" if place in stars else text)
        columns.append(f"{name} last")
        stars = best_places([value.final if value else None for value in found], higher=higher)
        for place, value in enumerate(found):
            text = "" if value is None else format_cell(value.final)
            cells[place].append(f"best:{text}" if place in stars else text)
    page.heading("Metrics").text("The best value of each column has a star. ↓: lower is better, ↑: higher is better.")
    page.rows_of_runs(columns, cells, numeric=set(range(2, len(columns))))


def _options(page: ComparisonPage) -> None:
    with_options = [run for run in page.runs if run.options]
    rows = [row for row in differences([run.options for run in page.runs]) if not row[0].startswith("logger.")]
    page.heading("Options that differ")
    if len(with_options) < len(page.runs):
        page.text("Of runs without a config.yaml nothing is known.")
    if not rows:
        page.text("None: all runs have the same options.")
        return
    common = [row for row in rows if MISSING not in row[1]]
    partial = [row for row in rows if MISSING in row[1]]
    if common:
        page.add(page.columns_of_runs(common[:MOST_ROWS], heading="option"))
    if common[MOST_ROWS:]:
        page.folded(
            f"{len(common) - MOST_ROWS} more options that differ", page.columns_of_runs(common[MOST_ROWS:], heading="option")
        )
    if partial:
        page.folded(f"{len(partial)} options that only some runs have", page.columns_of_runs(partial, heading="option"))


def _curves(page: ComparisonPage) -> None:
    names = dict.fromkeys(name for run in page.runs for name in run.curves)
    order = [*metric_names(page.runs), *(name for name in names if name.startswith("train/") and name != "train/loss")]
    order += [name for name in names if name not in order]
    drawn: list[list[Any]] = []
    for name in list(order):  # train/loss is train/nll where there is one term
        if (found := [run.curves.get(name) for run in page.runs]) in drawn:
            order.remove(name)
        drawn.append(found)
    counts = {name: sum(name in run.curves for run in page.runs) for name in order}
    shown = [name for name in order if name.startswith((*MEASURED, "train/"))]
    groups = {
        "Curves": [name for name in shown if counts[name] > 1],
        "Curves that only one run has": [name for name in shown if counts[name] == 1],
        "Learning rates and other curves": [name for name in order if name not in shown],
    }
    for title, members in groups.items():
        charts = "".join(_chart(page, name) for name in members if len(page.runs) >= counts[name] > 0)
        if not members:
            continue
        if title == "Curves":
            page.heading(title)
            page.add(f'<div class="charts">{charts}</div>')
        else:
            page.folded(f"{title} ({len(members)})", f'<div class="charts">{charts}</div>')


def _chart(page: ComparisonPage, name: str) -> str:
    curves = {place: run.curves[name] for place, run in enumerate(page.runs) if name in run.curves}
    chart = line_chart(curves, names=page.names, title=f"{name} over optimizer steps, {len(curves)} runs")
    return f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>"


def _samples(page: ComparisonPage, *, num_samples: int, seconds: float) -> None:
    page.heading("Samples")
    without = [str(place + 1) for place, run in enumerate(page.runs) if not run.samples]
    if without:
        page.text(f"Without samples: {'run' if len(without) == 1 else 'runs'} {', '.join(without)}.")
    named = [{sample.name: sample for sample in run.samples[:num_samples]} for run in page.runs]
    for name in dict.fromkeys(name for samples in named for name in samples):
        cards = [
            _card(page, place, samples[name], page.runs[place], seconds) for place, samples in enumerate(named) if name in samples
        ]
        page.heading(name, level=3)
        page.add(f'<div class="samples">{"".join(cards)}</div>')


def _card(page: ComparisonPage, place: int, sample: Sample, run: Run, seconds: float) -> str:
    parts = [f"<b>{page.chip(place)} {escape(page.names[place])}</b>"]
    if sample.picture is not None:
        tag = f'<img src="SRC" alt="{escape(f"{sample.name} of {run.label}")}">'
        parts.append(_embedded(tag, sample.picture.read_bytes(), sample.picture, allowed=IMAGE_SUFFIXES))
    if sample.sound is not None:
        player = '<audio controls preload="metadata" src="SRC"></audio>'
        parts.append(_embedded(player, excerpt(sample.sound, seconds=seconds), sample.sound, allowed=AUDIO_SUFFIXES))
    told = [f"{key} {_shown(value)}" for key, value in sample.values.items() if key.startswith(("asked ", "got "))]
    told += [f"{key} {_shown(value)}" for key, value in sample.values.items() if not key.startswith(("asked ", "got "))][:6]
    parts.append(f"<p>{escape('; '.join(told))}</p>")
    return f'<div class="r{place}">{"".join(parts)}</div>'


def _embedded(tag: str, data: bytes | None, file: Path, *, allowed: tuple[str, ...]) -> str:
    """Returns the HTML of a picture or a player, or a note where the file can't be used. tag: with SRC for its data."""
    try:
        return tag.replace("SRC", data_uri(data or b"", allowed=allowed))
    except ValueError:
        return f"<p>{escape(file.name)} can't be read</p>"


def excerpt(sound: Path, *, seconds: float) -> bytes | None:
    """Returns the beginning of a sound as MP3 with one channel; None if the file can't be read."""
    import soundfile

    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(sound) as file:
            rate = file.samplerate
            samples = file.read(int(seconds * rate), dtype="float32", always_2d=True)
        soundfile.write(buffer, samples.mean(axis=1), rate, format="MP3")
    except (soundfile.SoundFileError, OSError, ValueError):
        return None
    return buffer.getvalue()


def _environments(page: ComparisonPage) -> None:
    page.heading("Environment")
    rows = differences([run.environment for run in page.runs])
    packages = differences([run.packages for run in page.runs])
    same = {key: value for key, value in page.runs[0].environment.items() if key not in dict(rows)}
    if rows:
        page.add(page.columns_of_runs(rows, heading="differs"))
    if packages:
        page.folded(f"{len(packages)} packages differ", page.columns_of_runs(packages, heading="package"))
    if same:
        page.text("The same in all runs:").facts(list(same.items()))


def _cell(text: str, *, right: bool) -> str:
    best = text.startswith("best:")
    names = " ".join(name for name, given in (("number", right), ("best", best)) if given)
    attribute = f' class="{names}"' if names else ""
    return f"<td{attribute}>{text.removeprefix('best:')}</td>"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else "null" if value is None else format_cell(value)
