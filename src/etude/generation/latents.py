"""Pieces from the latents of scores: between two of them, or with attributes changed; what was asked for, and what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from symusic import Score

from etude.core.protocols import Blends
from etude.data.scores.reading import read_prompt
from etude.music.score import num_bars, num_notes
from etude.report.reports import Report
from etude.tokens.tokenizer import FORM, WISHES

STEPS = 8  # pieces from one score to another
LEFT_OUT = ("infill", "num_bars", "genre", "key", "tempo_bpm", "metre", "programs", "rank_by", *WISHES, *FORM)  # of the scores


@dataclass(frozen=True)
class LatentWish:
    """What is asked of a model with latents.

    ends: the two scores between which `steps` pieces lie; empty where `score` is to be changed.
    changes: attribute -> by how many standard deviations.
    """

    ends: tuple[Score, ...]
    steps: int
    score: Score | None
    changes: Mapping[str, float]

    def pieces(self, task: Blends, *, num_samples: int, seed: int, **how: Any) -> Sequence[Score]:
        """Returns the pieces; how: options of `LanguageModel.sample`."""
        if self.ends:
            return task.interpolate(*self.ends, steps=self.steps, seed=seed, **how)
        return task.slide(self.score, self.changes, num_samples=num_samples, seed=seed, **how)

    def count(self, num_samples: int) -> int:
        """How many pieces there will be."""
        return self.steps if self.ends else num_samples


def latent_wish(options: Mapping[str, Any], task: object) -> LatentWish | None:
    """Reads `interpolate`, `steps` and `slide` of the options of `write_samples`; None where neither is asked for.

    Raises: ValueError for what the task can't do, scores that can't be read, or options that contradict each other.
    """
    ends, changes, steps = options.get("interpolate"), dict(options.get("slide") or {}), options.get("steps")
    if ends is None and steps is not None:
        raise ValueError(f"steps={steps} is the number of pieces between two scores; add interpolate=[a.mid,b.mid]")
    if ends is None and not changes:
        return None
    name = "slide" if ends is None else "interpolate"
    if ends is not None and changes:
        raise ValueError("interpolate and slide can't be asked for together; leave one of them out")
    given = [option for option in LEFT_OUT if _is_given(options.get(option))]
    if given or (ends is not None and options.get("prompt") is not None):
        raise ValueError(f"{(given or ['prompt'])[0]} can't be asked for with {name}; leave it out")
    if not isinstance(task, Blends):
        raise ValueError(f"{name}: {type(task).__name__} has no latents; train one with task=vae and give its ckpt=")
    if ends is not None:
        if isinstance(ends, str) or len(ends) != 2:
            raise ValueError(f"interpolate={ends} must be two scores, as in interpolate=[a.mid,b.mid]")
        first, last = (read_prompt(Path(str(path)).expanduser()) for path in ends)
        steps = STEPS if steps is None else int(steps)
        task.check_interpolation(first, last, steps=steps)
        return LatentWish((first, last), steps, None, {})
    prompt = options.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError("slide changes a score: prompt=my.mid slide={density:1.5}")
    for attribute, amount in changes.items():
        if not isinstance(amount, int | float):
            raise ValueError(f"slide.{attribute} is {amount!r}, must be a number of standard deviations, such as 1.5 or -1")
        task.check_attribute(attribute)
    return LatentWish((), 0, read_prompt(Path(prompt).expanduser()), {key: float(value) for key, value in changes.items()})


def _is_given(value: Any) -> bool:
    return any(part is not None for part in value.values()) if isinstance(value, Mapping) else value not in (None, False)


def tell_latents(wish: LatentWish, pieces: Sequence[Score], report: Report) -> None:
    """Adds a table of what came to the report: of pieces between two scores their likeness to both, else the attributes."""
    if not pieces:
        return
    if wish.ends:
        rows = [
            [
                f"{number / (wish.steps - 1):.2f}",
                *(f"{likeness(piece, end):.2f}" for end in wish.ends),
                f"{notes_of_bar(piece):.1f}",
            ]
            for number, piece in enumerate(pieces)
        ]
        columns = ("place between the two", "notes shared with the first", "with the last", "notes of a bar")
        report.heading("From the first score to the last").table(columns, rows)
        return
    assert wish.score is not None
    asked = ", ".join(f"{name} {amount:+g} standard deviations" for name, amount in wish.changes.items())
    rows = [
        [name, f"{notes_of_bar(piece):.1f}", f"{mean_pitch(piece):.1f}"]
        for name, piece in [("the score", wish.score), *((f"{number:03d}", piece) for number, piece in enumerate(pieces))]
    ]
    report.heading(f"Asked for: {asked}").table(("piece", "notes of a bar", "mean pitch"), rows)


def notes_of_bar(score: Score) -> float:
    """Notes per bar; 0 for an empty score."""
    return num_notes(score) / max(num_bars(score), 1)


def mean_pitch(score: Score) -> float:
    """Mean MIDI pitch of the notes that are no drums; NaN without any."""
    pitches = [note.pitch for track in score.tracks if not track.is_drum for note in track.notes]
    return float(np.mean(pitches)) if pitches else float("nan")


def likeness(first: Score, second: Score) -> float:
    """The share of notes that two scores have in common, in [0, 1]: same pitch at the same sixteenth of the piece.

    It is the harmonic mean of the shares of both (the F1 score).
    """
    one, other = (_notes(score) for score in (first, second))
    return 2 * len(one & other) / max(len(one) + len(other), 1)


def _notes(score: Score) -> set[tuple[int, int]]:
    quarter = score.ticks_per_quarter
    return {(round(4 * note.time / quarter), note.pitch) for track in score.tracks if not track.is_drum for note in track.notes}
