"""Compare the properties that were asked of samples with those that they have."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from symusic import Score

from etude.music.passages import Passage, same_outside
from etude.music.score import bar_ticks, num_notes
from etude.music.theory import Key, estimate_key, has_key
from etude.tokens.changes import first_metre, first_tempo
from etude.tokens.tokenizer import program_family

COMPUTED = ("key", "metre", "tempo_bpm", "num_bars", "programs")  # labels that can be computed from a score
TEMPO_OCTAVES = 1 / 8  # half the distance between two tempo labels


def asked_and_got(asked: Mapping[str, Any], scores: Sequence[Score]) -> list[tuple[str, str, str, str]]:
    """Returns rows (label, asked, most frequent value, share of the samples that have the asked value).

    Labels that can be computed from a score are key (estimated), metre, tempo_bpm, num_bars and programs (a sample must have
    the family of each). A genre can't be computed and has no row.
    """
    rows = []
    sounding = [score for score in scores if num_notes(score)]
    for label, value in asked.items():
        if label not in COMPUTED or not sounding:
            continue
        got = [property_of(label, score) for score in sounding]
        share = float(np.mean([_fits(label, value, found) for found in got]))
        often = Counter(map(str, got)).most_common(1)[0][0]
        rows.append((label, str(value), often, f"{share:.0%} of {len(sounding)}"))
    return rows


def outside(prompt: Score, samples: Sequence[Score], passage: Passage) -> str:
    """One line that tells whether samples have the prompt's notes outside of a passage."""
    same = sum(same_outside(prompt, sample, passage) for sample in samples)
    bars = f"bars {passage.start + 1} to {passage.end}" + ("" if passage.tracks is None else " of the tracks asked for")
    return f"outside of {bars} {same} of {len(samples)} samples have the notes of the prompt"


def told_of_key(
    asked: Any, scores: Sequence[Score], *, prompt: bool, names: Sequence[str] | None = None, chords: bool = False
) -> list[str]:
    """Returns one line that names the samples which are not in the key that was asked for, and the remedy; none if all are.

    prompt: whether the samples continue one, so that none was transposed. names: of the samples; None for 000, 001, ...
    chords: whether chords were asked for, likewise.
    """
    key = Key.parse(str(asked))
    others: dict[str, list[str]] = {}
    for name, score in zip(names or [f"{number:03d}" for number in range(len(scores))], scores, strict=False):
        if num_notes(score) and estimate_key(score) == key:
            continue
        what = str(estimate_key(score)) if has_key(score) else "no key" if num_notes(score) else "no notes"
        others.setdefault(what, []).append(name)
    if not others:
        return []
    found = "; ".join(f"{', '.join(numbers)} ({what})" for what, numbers in others.items())
    remedy = (
        "chords come before the key; give chords of that key, or leave key= out"
        if chords
        else "a prompt keeps its key; give a prompt in that key, or leave key= out"
        if prompt
        else "give another seed=, ask for the other mode, or train the model longer"
    )
    return [f"not in {key}: {found}; {remedy}"]


def bars_begun(score: Score) -> int:
    """The bars up to the last one in which a note begins; what only rings on counts for nothing."""
    onsets = [int(track.notes.numpy()["time"].max()) for track in score.tracks if len(track.notes)]
    return int(np.searchsorted(bar_ticks(score), max(onsets, default=0), side="right"))


def property_of(label: str, score: Score) -> Any:
    """Returns what a score has of a label that can be computed: key, metre, tempo_bpm, num_bars or programs."""
    if label == "key":
        return str(estimate_key(score))
    if label == "metre":
        return "{}/{}".format(*first_metre(score))
    if label == "tempo_bpm":
        return round(first_tempo(score))
    if label == "num_bars":
        return bars_begun(score)
    return sorted({-1 if track.is_drum else track.program for track in score.tracks if len(track.notes)})


def _bar(metre: Any) -> tuple[int, int]:
    """Numerator and denominator, with cut time as the 4/4 that most tokenizers write for it."""
    numerator, denominator = (int(part) for part in str(metre).split("/"))
    return (2 * numerator, 4) if denominator == 2 else (numerator, denominator)


def _fits(label: str, asked: Any, got: Any) -> bool:
    if label == "key":
        return str(Key.parse(str(asked))) == str(got)
    if label == "tempo_bpm":
        return abs(float(np.log2(got / asked))) <= TEMPO_OCTAVES
    if label == "metre":
        return _bar(asked) == _bar(got)
    if label == "programs":
        return {program_family(int(p)) for p in asked} <= {program_family(p) for p in got}
    return bool(asked == got)
