"""The parts that all reports have: the run's name, command, learning curve and configuration."""

import csv
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from etude.report.plots import COLOURS, png
from etude.report.reports import Report

OPTIONS = ("config.yaml", "generate.yaml", "evaluate.yaml")  # the files to which commands write their configuration
STILL = 4  # validations of a run, from which on it can be said to stand still
Points = list[tuple[float, float]]


def begin_report(title: str, folder: Path, *, facts: Sequence[tuple[str, object]] = ()) -> Report:
    """Returns a report that begins with the run, its command and `facts`, pairs of (name, value); empty values are left out."""
    rows = [("run", folder.resolve().name), ("command", command_line(sys.argv)), *facts]
    return Report(title).facts([(name, value) for name, value in rows if value not in (None, "")])


def end_report(report: Report, folder: Path) -> Path:
    """Adds the learning curve and the configuration, writes report.html to the run's folder and returns its path."""
    add_learning_curve(report, folder / "metrics.csv")
    return add_configuration(report, folder).write(folder / "report.html")


def add_configuration(report: Report, folder: Path) -> Report:
    """Adds the settings of the command that wrote the folder, as a section that can be opened; returns the report."""
    for name in OPTIONS:
        if (folder / name).is_file():
            report.heading("Configuration").details(f"all settings of this command ({name})", (folder / name).read_text())
    return report


def command_line(arguments: Sequence[str]) -> str:
    """Returns the command that was typed, from the program's name on."""
    program = Path(arguments[0]).name
    return shlex.join((["python"] if program.endswith(".py") else []) + [program, *arguments[1:]])


def add_learning_curve(report: Report, metrics: Path) -> None:
    """Adds a plot of the losses of training and validation over the steps; adds nothing if none are logged."""
    curves = read_curves(metrics) if metrics.is_file() else {}
    if curves:
        last = {name: points[-1][1] for name, points in curves.items()}
        lowest = {name: min(points, key=lambda point: point[1]) for name, points in curves.items() if name.startswith("val/")}
        ends = [f"{name} ends at {value:.4g}" for name, value in last.items()]
        ends += [f"{name} is lowest, {value:.4g}, at step {step:.0f}" for name, (step, value) in lowest.items()]
        alt = f"Learning curve over {max(points[-1][0] for points in curves.values()):.0f} steps: {'; '.join(ends)}"
        report.heading("Learning curve").image(draw_curves(curves), caption=f"{'; '.join(ends)}.", alt=alt)


def read_curves(metrics: Path) -> dict[str, Points]:
    """Returns the losses in a metrics.csv as name -> (step, value) points; `train/loss` is left out if it equals another one."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row.get("step") or "").strip()]
    names = sorted({key for row in rows for key in row if key and key.startswith(("train/", "val/"))})
    curves = {name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in names}
    curves = {name: points for name, points in curves.items() if points}
    others = [points for name, points in curves.items() if name.startswith("train/") and name != "train/loss"]
    if curves.get("train/loss") in others:
        del curves["train/loss"]
    return curves


def standing_still(metrics: Path, *, monitor: str, mode: str) -> str:
    """Returns a line that says since when a run's validation no longer improved; '' if that is no more than half of the run.

    metrics: the run's metrics.csv. monitor: the metric that picks the best checkpoint. mode: min or max.
    """
    points = read_curves(metrics).get(monitor, []) if metrics.is_file() else []
    if len(points) < STILL:
        return ""
    step, best = (min if mode == "min" else max)(points, key=lambda point: point[1])
    last = points[-1][0]
    if step > last / 2:
        return ""
    return (
        f"{monitor} was best at step {step:.0f} ({best:.4g}) and has not improved in the {last - step:.0f} steps since; "
        "add early_stopping to technique=[...] to stop there, or give max_steps"
    )


def draw_curves(curves: dict[str, Points]) -> bytes:
    """Returns a PNG with one panel for each term: a thin line for training, a thick one for validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = list(dict.fromkeys(name.partition("/")[2] for name in curves))
    columns = min(2, len(terms))
    lines = -(-len(terms) // columns)
    figure = Figure(figsize=(8.5 if columns == 1 else 10.0, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, term in zip(axes, terms, strict=False):
        for place, part in enumerate(("train", "val")):
            points = curves.get(f"{part}/{term}")
            if points:
                style = {"linewidth": 1 + place, "marker": "o" if len(points) < 30 else None, "markersize": 3 + place}
                axis.plot(*zip(*points, strict=True), color=COLOURS[place], label=("training", "validation")[place], **style)
        axis.set_title(term.replace("$", r"\$"), loc="left", fontsize=9.5)
        axis.set_xlabel("optimizer steps", fontsize=8.5)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    for axis in axes[len(terms) :]:
        axis.set_visible(False)
    return png(figure)
