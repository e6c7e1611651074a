"""Facts about a piece for the manifest, computed from its score."""

from typing import Any

from symusic import Score

from etude.music.score import duration_beats, num_bars, num_notes
from etude.music.theory import estimate_key

DRUMS = -1


def describe(score: Score) -> dict[str, Any]:
    """Returns the facts about a piece as plain values.

    key: such as 'G major', estimated from the notes; None for drums alone.
    tempo_bpm: the first tempo in quarters per minute; None if the score has none.
    metre: the first time signature; '4/4' if the score has none.
    bars, notes, tracks: their numbers.
    programs: General MIDI programs 0-127, -1 for drums, sorted.
    duration_beats: the length in quarter notes.
    """
    pitched = any(len(track.notes) and not track.is_drum for track in score.tracks)
    metre = score.time_signatures[0] if len(score.time_signatures) else None
    return {
        "key": str(estimate_key(score)) if pitched else None,
        "tempo_bpm": round(float(score.tempos[0].qpm), 3) if len(score.tempos) else None,
        "metre": f"{metre.numerator}/{metre.denominator}" if metre else "4/4",
        "bars": num_bars(score),
        "notes": num_notes(score),
        "tracks": len(score.tracks),
        "programs": sorted({DRUMS if track.is_drum else int(track.program) for track in score.tracks}),
        "duration_beats": float(duration_beats(score)),
    }
