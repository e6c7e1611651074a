"""Line charts as SVG, a line for each run; each line has its run's class, so that a page can hide it."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

from etude.report.comparison.runs import Points

Scale = Callable[[float], float]
# Okabe & Ito's colours, then darker ones; a second round is dashed. On white all are told apart.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#7A7A1F", "#332288", "#2F8F83", "#AA4499",
    "#6B6B6B",
)  # fmt: skip
DASHES = ("", "6 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 300, 58, 12, 12, 38
MOST_POINTS = 240  # of a line; of more, neighbours are averaged
WARM_UP = 0.1  # share of the steps whose values of training don't stretch the axis


def colour(place: int) -> str:
    """Returns the colour of the run in this place."""
    return COLOURS[place % len(COLOURS)]


def dash(place: int) -> str:
    """Returns the stroke-dasharray of the run in this place; "" for a solid line."""
    return DASHES[place // len(COLOURS) % len(DASHES)]


def line_chart(curves: Mapping[int, Points], *, names: Sequence[str], title: str) -> str:
    """Returns an SVG of curves over optimizer steps.

    Args:
        curves: place of a run -> its points; at least one.
        names: of the runs, for the tooltips.
        title: for those who can't see it.
    """
    last = max(points[-1][0] for points in curves.values())
    first = min(points[0][0] for points in curves.values())
    x_low, x_high = (first, last) if last > first else (first - 0.5, last + 0.5)
    y_low, y_high = _range(curves, last)

    def x_of(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">']
    parts += _axes(x_of, y_of, ticks(x_low, x_high, whole=True), ticks(y_low, y_high))
    box = f"{LEFT - 4} {TOP - 4} {WIDTH - LEFT - RIGHT + 8} {HEIGHT - TOP - BOTTOM + 8}"  # clips what is outside of it
    x, y, width, height = box.split()
    parts.append(f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">')
    for place, points in curves.items():
        thinned = thin(points)
        coordinates = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in thinned)
        style = f'stroke="{colour(place)}"' + (f' stroke-dasharray="{dash(place)}"' if dash(place) else "")
        marks = [(x_of(step), y_of(value)) for step, value in (points if len(points) <= 30 else points[-1:])]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in marks)
        tip = html.escape(f"{names[place]}: {points[-1][1]:.4g} at step {points[-1][0]:.0f}")
        parts.append(
            f'<g class="line r{place}" fill="{colour(place)}"><title>{tip}</title>'
            f'<polyline points="{coordinates}" fill="none" {style}/>{dots}</g>'
        )
    return "".join([*parts, "</svg></svg>"])


def _axes(x_of: Scale, y_of: Scale, steps: Sequence[float], values: Sequence[float]) -> list[str]:
    parts = []
    for value in values:
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for step in steps:
        x = x_of(step)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{step:,.0f}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">optimizer steps</text>')
    return parts


def _range(curves: Mapping[int, Points], last: float) -> tuple[float, float]:
    """Returns the ends of the vertical axis; the first few steps of long curves, which are far off, may leave it."""
    kept = [
        value
        for points in curves.values()
        for step, value in (points if len(points) < 20 else points[len(points) // 10 :])
        if len(points) < 20 or step >= WARM_UP * last
    ]
    low, high = min(kept), max(kept)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - max(abs(low) * 0.05, 1e-6), high + max(abs(high) * 0.05, 1e-6)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Returns 3 to 7 round numbers between two different numbers. whole: integers only."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: Points) -> Points:
    """Returns at most `MOST_POINTS` points: means of neighbours, and the last point as it is."""
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // (MOST_POINTS - 1))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups]
    return [*means, points[-1]]
