"""Scores for the tests of the metrics: built by hand, drawn at random, and turned into muspy's."""

import muspy
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track


def build(tracks, *, ticks_per_quarter=12, metre=(4, 4), drums=()):
    """A score of tracks, each a list of (onset, duration, pitch); `drums` holds the indices of drum tracks."""
    score = Score(ticks_per_quarter)
    score.time_signatures.append(TimeSignature(0, *metre))
    for index, notes in enumerate(tracks):
        track = Track(program=0, is_drum=index in drums)
        for onset, duration, pitch in notes:
            track.notes.append(Note(onset, duration, pitch, 64))
        score.tracks.append(track)
    return score


def to_muspy(score):
    """The same notes as a `muspy.Music` at the same resolution."""
    return muspy.Music(
        resolution=score.ticks_per_quarter,
        tracks=[
            muspy.Track(
                is_drum=track.is_drum,
                notes=[
                    muspy.Note(time=int(n.time), pitch=int(n.pitch), duration=int(n.duration), velocity=int(n.velocity))
                    for n in track.notes
                ],
            )
            for track in score.tracks
        ],
    )


NOTES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60), st.integers(0, 127)), max_size=25)


@st.composite
def scores(draw, *, min_tracks=1):
    """Any score: overlapping, repeated, zero-length and drum notes, empty tracks, resolutions 1..24."""
    tracks = draw(st.lists(NOTES, min_size=min_tracks, max_size=4))
    drums = draw(st.sets(st.integers(0, 3)))
    metre = draw(st.sampled_from([(4, 4), (3, 4), (2, 4), (5, 4)]))
    return build(tracks, ticks_per_quarter=draw(st.integers(1, 24)), metre=metre, drums=drums)
