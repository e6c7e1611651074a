"""Asks a model to fill a passage of a score: the tokens before what is missing, and what may be written there."""

from collections.abc import Sequence

import numpy as np
from symusic import Score, Track

from etude.music.passages import Passage
from etude.music.score import bar_ticks
from etude.tokens.grammar import Decoder
from etude.tokens.infilling import Bars, Hole, OpenHole, only, opening
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_parts import Owner, owners
from etude.tokens.plans import without_plan
from etude.tokens.restrictions import Restrictions
from etude.tokens.wished_grammar import restricted
from etude.tokens.wishes import Wishes


def track_owners(score: Score, *, parts: int) -> list[Owner | None]:
    """Returns program and part of each track of a score, as its tokens name them; None for tracks without notes."""
    order = [i for i, track in enumerate(score.tracks) if len(track.notes)]
    order = sorted(order, key=lambda i: (score.tracks[i].is_drum, score.tracks[i].program))
    few = Score(score.ticks_per_quarter)
    few.tracks = [score.tracks[i] for i in order]
    found = dict(zip(order, owners(few, parts=parts), strict=True))
    return [found.get(i) for i in range(len(score.tracks))]


def open_hole(tokenizer: MidiTokTokenizer, score: Score, passage: Passage, *, ahead: int, most_tokens: int) -> OpenHole:
    """Returns what precedes the missing notes of a passage as tokens, and what may be written there.

    Args:
        tokenizer: one with `can_infill`.
        ahead: bars behind the passage that are seen before it is filled.
        most_tokens: bars before the passage are left out where more would be needed.

    Raises:
        ValueError: the tokenizer can't represent the score, or writes other bars than the score has.
    """
    bars = Bars(_with_all_bars(tokenizer, score), tokenizer.table)
    if len(bars) != len(bar_ticks(score)):
        raise ValueError(
            f"infill: the piece has {len(bar_ticks(score))} bars and its tokens {len(bars)}, since a metre changes within a bar; "
            "move changes of metre to bar lines"
        )
    found = track_owners(score, parts=tokenizer.parts)
    mine = None if passage.tracks is None else frozenset(owner for i in passage.tracks if (owner := found[i]) is not None)
    if mine is not None and (joined := [i for i, owner in enumerate(found) if owner in mine and i not in (passage.tracks or ())]):
        raise ValueError(
            f"infill.tracks: track {joined[0] + 1} is one with those asked for, since the model keeps at most "
            f"{tokenizer.parts} tracks of one program apart; give it another program, or name it, too"
        )
    hole = Hole(passage.start, passage.end, min(passage.end + ahead, len(bars)), mine)
    before, inside = opening(bars, hole, program_changes=tokenizer.program_changes, most_tokens=most_tokens)
    metres = tuple(int(bars.ids[bars.starts[bar] + 1]) for bar in range(hole.start, hole.end))
    wanted = Restrictions(owners=mine, metres=metres, tempos=frozenset(), free=len(before.ids), hole=True)
    return OpenHole(before.ids, before.positions, inside, wanted, passage.end - passage.start)


def _with_all_bars(tokenizer: MidiTokTokenizer, score: Score) -> np.ndarray:
    """The ids of a score, with empty bars at the end for those in which its last notes only ring on."""
    ids = without_plan(tokenizer.encode(score), tokenizer.table)
    bars = Bars(ids, tokenizer.table)
    missing = len(bar_ticks(score)) - len(bars)
    start = int(bars.starts[len(bars) - 1])
    return np.concatenate([ids, np.tile(ids[start : start + 2], max(0, missing))])


def hole_decoder(tokenizer: MidiTokTokenizer, hole: OpenHole, *, batch: int, wishes: Wishes | None = None) -> Decoder:
    """Returns a decoder for what is missing: exactly its bars, in their metres, played by its tracks, within wishes."""
    grammar = restricted(tokenizer.table, hole.restrictions, program_changes=tokenizer.program_changes, wishes=wishes)
    return Decoder(grammar, batch=batch, first_body=tokenizer.first_body, num_bars=hole.num_bars)


def tracks_of(tokenizer: MidiTokTokenizer, ids: Sequence[int]) -> dict[Owner, Track]:
    """Decodes REMI tokens, whose special and control tokens are left out, to one track for each program and part.

    Times are in 480 ticks per quarter.
    """
    bars = Bars(np.array([i for i in ids if i >= tokenizer.first_body], dtype=np.int64), tokenizer.table)
    found = {}
    for owner in sorted(frozenset[Owner]().union(*bars.owners)):
        for track in tokenizer.decode(only(bars, owner, program_changes=tokenizer.program_changes)).tracks:
            found[owner] = track  # none if its only note is cut off
    return found
