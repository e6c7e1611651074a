"""docs/results/grader.md, from rows of benchmarks/grader.py; called by report.py."""

import math
import statistics

from report import RESULTS, Row, rows, table, where

TOGETHER = {
    "mean average precision": "mean average precision of the seven defects",
    "quality, Pearson": "quality: Pearson's correlation with the known strengths",
    "quality, Spearman": "quality: Spearman's",
    "quality, mean error": "quality: mean error, of 1 to 10",
    "calibration error": "calibration error of the defects' probabilities",
    "calibration error without temperatures": "the same without temperatures",
    "onsets, F1 within 50 ms": "onsets: F1 within 50 ms",
    "onsets by spectral flux, F1": "onsets by the peaks of the spectral flux, without training",
    "sections, F1 within 0.5 s": "joins of two recordings: F1 within 0.5 s",
}
EACH = {
    "average precision": "average precision",
    "of frames": "of frames",
    "of bands": "of coarse bands",
    "precision": "precision",
    "recall": "recall",
    "recall, strength from 0.5": "recall from strength 0.5",
    "calibration error": "calibration error",
}
SHORT = (
    "mean average precision",
    "quality, Pearson",
    "calibration error",
    "onsets, F1 within 50 ms",
    "sections, F1 within 0.5 s",
)


def spread(values: list[float]) -> str:
    """Returns mean and standard deviation with three decimals; a dash for values that are not defined."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    text = f"{statistics.mean(known):.3f}"
    return f"{text} ± {statistics.stdev(known):.3f}" if len(known) > 1 else text


def grader() -> str:
    """docs/results/grader.md; returns its table of the summary."""
    latest = {(row["test"], row["seed"]): row for row in rows("grader.jsonl") if row["split"] == "test"}
    found: list[Row] = list(latest.values())
    if not found:
        return ""
    tests = list(dict.fromkeys(row["test"] for row in found))
    of = {test: [row for row in found if row["test"] == test] for test in tests}
    seeds, steps = len({row["seed"] for row in found}), sorted({row["steps"] for row in found})
    lines = [[name, *(spread([row["summary"][key] for row in of[test]]) for test in tests)] for key, name in TOGETHER.items()]
    parts = [
        "# The grader",
        f"`train.py task=grader` for {found[0]['cpu_s'] / 60:.1f} CPU-minutes on one thread ({steps[0]} steps, "
        f"{found[0]['parameters'] / 1e6:.2f} M parameters, {seeds} seed{'s' * (seeds > 1)}), on 180 tunes that are arranged as "
        "folk, rock and jazz and rendered. Tested on 40 other tunes in the three styles: as they are rendered in training, and "
        "played by FluidSynth with another soundfont, which nothing was chosen on. Segments of two seconds get none to three of "
        "seven defects (`audio/degradations.py`), each of a random strength from 0.1 to 1 and, in half of the cases, in a part "
        "of the segment. Temperatures and thresholds are fitted on validation tunes of training's soundfont.",
        table(["", *tests], lines),
    ]
    for test in tests:
        names = [row["defect"] for row in of[test][0]["defects"]]
        cells = [
            [name, *(spread([row["defects"][place][key] for row in of[test]]) for key in EACH)]
            for place, name in enumerate(names)
        ]  # fmt: skip
        parts += [f"## {test}", table(["defect", *EACH.values()], cells)]
        suffix = "" if test == tests[0] else "_other"
        parts += [f"![{title}](grader_{name}{suffix}.png)" for name, title in PICTURES.items()]
    parts += [where(found), "Regenerate: `make grader SOUNDFONT=FluidR3_GM.sf2`."]
    notes = RESULTS / "grader_notes.md"
    if notes.exists():
        parts.append(notes.read_text().rstrip())
    (RESULTS / "grader.md").write_text("\n\n".join(parts) + "\n")
    short = [[TOGETHER[key], *(spread([row["summary"][key] for row in of[test]]) for test in tests)] for key in SHORT]
    return table([f"grader, {found[0]['cpu_s'] / 60:.1f} CPU-minutes", *tests], short)


PICTURES = {
    "precision_recall": "Precision and recall of each defect",
    "confusion": "Which defect is taken for which",
    "reliability": "How often what is said with a probability is true",
    "quality": "The quality that is said over that of the known strengths",
    "segment_0": "A segment with three defects: its mel, and the probability of each defect in each frame",
    "segment_2": "Another segment",
}
