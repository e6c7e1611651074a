"""Puts what a model wrote into the score that it was given, of which nothing else changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from symusic import Score, Tempo, TimeSignature, Track

from etude.music.augmentation import scale_tempo
from etude.music.form import copy_plan
from etude.music.passages import Passage, added, replaced
from etude.music.score import bar_ticks
from etude.tokens.changes import bar_lengths, changes, first_metre, first_tempo
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.open_holes import track_owners, tracks_of
from etude.tokens.tokenizer import Tokenizer

TEMPO_SHARE = 0.1  # a tempo that is asked for may differ so much from the prompt's


def at_tempo(score: Score, tempo_bpm: float | None) -> Score:
    """Returns the score at a tempo that is asked for, of its first beat; later changes keep their ratio to it."""
    if tempo_bpm is None or not score.tracks:
        return score
    return scale_tempo(score, float(tempo_bpm) / first_tempo(score))


def refuse_contradictions(labels: Mapping[str, Any], prompt: Score) -> None:
    """Refuses a metre or a tempo that a prompt does not have. Raises: ValueError."""
    metre, tempo = labels.get("metre"), labels.get("tempo_bpm")
    if metre is not None:
        numerator, denominator = (int(part) for part in str(metre).split("/"))
        if 4 * numerator / denominator not in bar_lengths(prompt):
            found = "{}/{}".format(*first_metre(prompt))
            raise ValueError(f"metre={metre} contradicts the prompt, which is in {found}; leave metre out")
    if tempo is not None and abs(float(tempo) / first_tempo(prompt) - 1) > TEMPO_SHARE:
        raise ValueError(f"tempo_bpm={tempo} contradicts the prompt, which has {first_tempo(prompt):.0f}; leave tempo_bpm out")


def prompt_changes(tokenizer: Tokenizer, prompt: Score) -> list[str]:
    """Returns what a tokenizer changes in a prompt or leaves out of it, one phrase each; empty if nothing.

    Raises:
        ValueError: the tokenizer can't represent the prompt's metre, so bar lines would move.
    """
    written = tokenizer.decode(tokenizer.encode_prompt(prompt))
    if len(bar_ticks(prompt)) > 1 and not bar_lengths(prompt) & bar_lengths(written):  # a single bar may be incomplete
        asked, got = ("{}/{}".format(*first_metre(score)) for score in (prompt, written))
        raise ValueError(
            f"prompt: its metre is {asked}, and this model's {type(tokenizer).__name__} writes {got}; give a prompt in {got}, or "
            "take a model with tokenizer=remi"
        )
    return changes(prompt, written)


def continued(tokenizer: Tokenizer, prompt: Score, sequence: Sequence[int], *, opening: int) -> Score:
    """Returns the prompt, unchanged, with the notes and marks that a sequence adds to it.

    A tokenizer that does not keep tracks apart by program gives the decoded sequence instead.

    opening: number of the sequence's tokens that are the prompt, with BOS and controls.
    """
    if not isinstance(tokenizer, MidiTokTokenizer) or tokenizer.scheme != "REMI":
        return tokenizer.decode(sequence)
    result, ids = prompt.copy(), [int(i) for i in tokenizer.expand(np.asarray(sequence))]
    before = tracks_of(tokenizer, tokenizer.expand(np.asarray(sequence[:opening])).tolist())
    mine = {owner: i for i, owner in reversed(list(enumerate(track_owners(prompt, parts=tokenizer.parts)))) if owner is not None}
    for owner, track in tracks_of(tokenizer, ids).items():
        new = Track(name=track.name, program=track.program, is_drum=track.is_drum)
        new.notes.extend(added(before.get(owner, new), track))
        new = _at_resolution(new, prompt.ticks_per_quarter)
        if owner in mine:
            result.tracks[mine[owner]].notes.extend(new.notes)
            result.tracks[mine[owner]].notes.sort()
        elif len(new.notes):
            result.tracks.append(new)
    whole = tokenizer.decode(sequence)
    copy_plan(whole, result)
    return _with_later_marks(result, whole, tokenizer.decode(sequence[:opening]))


def _with_later_marks(result: Score, whole: Score, opening: Score) -> Score:
    """Adds the changes of metre and tempo that the opening lacks."""
    quarter = result.ticks_per_quarter
    for mark in list(whole.time_signatures)[len(opening.time_signatures) :]:
        time = mark.time * quarter // whole.ticks_per_quarter
        result.time_signatures.append(TimeSignature(time, mark.numerator, mark.denominator))
    for mark in list(whole.tempos)[len(opening.tempos) :]:
        result.tempos.append(Tempo(mark.time * quarter // whole.ticks_per_quarter, qpm=mark.qpm))
    return result


def filled(tokenizer: MidiTokTokenizer, prompt: Score, passage: Passage, ids: Sequence[int]) -> Score:
    """Returns the score with the notes of body tokens in its passage; tracks that it lacks are added."""
    found = track_owners(prompt, parts=tokenizer.parts)
    mine = {owner: i for i, owner in reversed(list(enumerate(found))) if owner is not None}
    new = {o: _at_resolution(track, prompt.ticks_per_quarter) for o, track in tracks_of(tokenizer, ids).items()}
    others = [track for owner, track in new.items() if owner not in mine]
    return replaced(prompt, passage, {mine[owner]: track for owner, track in new.items() if owner in mine}, others)


def _at_resolution(track: Track, ticks_per_quarter: int) -> Track:
    """Returns a track of 480 ticks per quarter in others."""
    score = Score(480)
    score.tracks.append(track)
    return score.resample(ticks_per_quarter, min_dur=1).tracks[0]
