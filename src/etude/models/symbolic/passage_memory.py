"""Retrieval from the training pieces: what followed in them where a voice, or all voices, went as they go now.

Chorale melodies recur between pieces. For each token three distributions of the next pitch are looked up: that of the places
where the same voice moved as it has moved here, for as many notes as possible (*melody*), and those of the places whose soprano
and chords were most like the last frames (*harmony*) and the last beats (*phrase*). All count in semitones, so a passage is found
in any key. Only places at the same sixteenth of a beat are compared. `PassageReader` makes features and evidence of them for a
network, in the manner of nearest-neighbour language models (Khandelwal et al. 2020), but with learned weights.

Shapes: f frames, n frames of all pieces, p places (frames of the memory at one sixteenth of a beat, a quarter of n), b rows,
v voices (0 soprano .. 3 bass), k kinds (melody, harmony, phrase), c classes of the next pitch: intervals from the last pitch of
the voice, -REACH to REACH semitones, then a rest.
"""

from collections.abc import Sequence

import numpy as np

from etude.models.symbolic.grid_context import INITIAL_PITCHES, REST

BEAT = 4  # frames
REACH = 12  # semitones; larger intervals count as this one
CLASSES = 2 * REACH + 2
FACTS = 2  # of the melody: log of one plus the matching notes, and the places; of the others: likeness of the best place, and 1
WIDTH = CLASSES + FACTS
STAYS_SILENT, ENDS, BEGINS = 100, 101, 102  # movements that are no interval
FIRST, NONE = 103, 104  # movement of the first frame in the memory, and of the first one that is given: equal to no other
DECAYS = (0.7, 0.9)  # of the likeness, per frame: half in two frames for the harmony, in six and a half for the phrase
KINDS = 1 + len(DECAYS)
SOPRANO, CHORD = 2.0, 1.0  # what the voices of the present frame add to the likeness
SHARPNESS = 5.0  # places weigh exp(SHARPNESS * likeness)
FAINT = 1.2  # places whose likeness is lower by this much, or 0, are left out


def movement(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Returns how voices got from one pitch to the next, int16: the interval in semitones, or one of the constants above."""
    x, y = np.asarray(before, np.int16), np.asarray(now, np.int16)
    sounding = np.where(x == REST, BEGINS, y - x)
    return np.where(y == REST, np.where(x == REST, STAYS_SILENT, ENDS), sounding).astype(np.int16)


def movements(frames_fv: np.ndarray) -> np.ndarray:
    """Returns the movement into each frame, int16 [f, 4]; `FIRST` into the first one."""
    moved = movement(frames_fv[:-1], frames_fv[1:])
    return np.concatenate([np.full((min(1, len(frames_fv)), 4), FIRST, np.int16), moved])


class PassageMemory:
    """The pieces, arranged for the search.

    Args:
        pieces: MIDI pitches [f, 4] of each piece on a sixteenth grid, `REST` for a rest.
    """

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        pitches, moved, starts, at = [], [], [], 0
        for piece in pieces:
            rest = BEAT - len(piece) % BEAT  # at least one frame after a piece, which equals nothing
            pitches.append(np.pad(np.asarray(piece, np.int16), ((0, rest), (0, 0)), constant_values=REST))
            moved.append(np.pad(movements(piece), ((0, rest), (0, 0)), constant_values=FIRST))
            starts.append(at)
            at += len(pitches[-1])
        empty = np.empty((0, 4), np.int16)
        self.pitches, self.moved = np.concatenate([empty, *pitches]), np.concatenate([empty, *moved])
        self.bounds = np.array([*starts, at])
        self._codes = _codes(self.moved)
        chords = _chord(self.pitches)

        def by_sixteenth(values: np.ndarray) -> list[np.ndarray]:
            return [np.ascontiguousarray(values[place::BEAT].T) for place in range(BEAT)]

        self.pitches_vp, self.moved_vp, self.chord_vp = (by_sixteenth(x) for x in (self.pitches, self.moved, chords))

    def containing(self, frames_fv: np.ndarray) -> list[int]:
        """Returns the pieces that contain these frames, in any key: all pieces if there are fewer than two frames."""
        codes = _codes(movements(frames_fv))[1:]
        if len(codes) == 0:
            return list(range(len(self.bounds) - 1))
        found = np.flatnonzero(self._codes == codes[0])
        for step, code in enumerate(codes[1:], start=1):
            found = found[found + step < len(self._codes)]
            found = found[self._codes[found + step] == code]
        return sorted(set((np.searchsorted(self.bounds, found, side="right") - 1).tolist()))

    def look_up(self, frames_fv: np.ndarray, *, leave_out: Sequence[int] = ()) -> np.ndarray:
        """Returns the distributions and their facts for each token of a piece, and of one frame more.

        leave_out: pieces that are not searched.

        Returns:
            float32 [f + 1, 4, k, c + 2]; of the last frame only the soprano.
        """
        x = np.asarray(frames_fv, np.int16)
        found = np.zeros((len(x) + 1, 4, KINDS, WIDTH), np.float32)
        search = PassageSearch(self, 1, leave_out=leave_out)
        for frame, row in enumerate(x):
            for voice in range(4):
                found[frame, voice] = search.propose()[0]
                search.push(row[voice : voice + 1])
        found[len(x), 0] = search.propose()[0]
        return found


def _chord(pitches_rv: np.ndarray) -> np.ndarray:
    """The intervals from the soprano to the other voices, int16 [r, 3], with the constants of `movement` for rests."""
    return movement(pitches_rv[:, :1], pitches_rv[:, 1:])


def _codes(moved_fv: np.ndarray) -> np.ndarray:
    """One number for the four movements of each frame."""
    k = moved_fv.astype(np.int64) + 128
    return ((k[:, 0] * 256 + k[:, 1]) * 256 + k[:, 2]) * 256 + k[:, 3]


class PassageSearch:
    """The search for passages like those of rows of pitches, which are given one token at a time.

    Args:
        memory: what is searched.
        batch: number of rows b, all at the same position.
        leave_out: pieces that are not searched.
    """

    def __init__(self, memory: PassageMemory, batch: int, *, leave_out: Sequence[int] = ()) -> None:
        self.memory, self.count = memory, 0
        self.left_out = [slice(memory.bounds[i] // BEAT, memory.bounds[i + 1] // BEAT) for i in leave_out]
        places = len(memory.pitches) // BEAT
        self._notes = np.zeros((batch, 4, places), np.int16)  # notes that moved alike up to the frame before the place
        self._likeness: np.ndarray = np.zeros((batch, len(DECAYS), places), np.float32)
        # the same, with the voices of this frame that are known
        self._now: np.ndarray = np.zeros((batch, len(DECAYS), places), np.float32)
        self._same = np.zeros((batch, places), bool)  # whether the soprano moved alike into this frame
        self._before = np.full((batch, 4), REST, np.int16)
        self._frame = np.full((batch, 4), REST, np.int16)
        self._last = np.tile(np.array(INITIAL_PITCHES, np.int64), (batch, 1))  # pitch of each voice that sounded last

    def propose(self) -> np.ndarray:
        """Returns the distributions and their facts for the next token, float32 [b, k, c + 2]; 0 where nothing was found."""
        frame, voice = divmod(self.count, 4)
        found = np.zeros((len(self._last), KINDS, WIDTH), np.float32)
        moved = self.memory.moved_vp[frame % BEAT][voice]
        pitches = self.memory.pitches_vp[frame % BEAT]
        for row in range(len(found)):
            self._melody(found[row, 0], row, voice, moved)
            for kind, likeness in enumerate(self._now[row], start=1):
                self._likest(found[row, kind], likeness, self._last[row], voice, moved, pitches)
        return found

    def _melody(self, into: np.ndarray, row: int, voice: int, moved_p: np.ndarray) -> None:
        notes = self._notes[row, voice]
        most = notes.max(initial=0)
        if most == 0:
            return
        moved = moved_p[notes == most].astype(np.int64)
        moved = moved[moved < BEGINS]
        if len(moved):
            classes = np.where(moved >= STAYS_SILENT, CLASSES - 1, moved.clip(-REACH, REACH) + REACH)
            into[:CLASSES] = np.bincount(classes, minlength=CLASSES) / len(moved)
            into[CLASSES:] = np.log1p(most), np.log1p(len(moved))

    @staticmethod
    def _likest(
        into: np.ndarray, likeness: np.ndarray, last: np.ndarray, voice: int, moved_p: np.ndarray, pitches_vp: np.ndarray
    ) -> None:
        best = likeness.max(initial=0.0)
        if best <= 0:
            return
        near = np.flatnonzero(likeness > max(best - FAINT, 0))
        moved, weights = moved_p[near], np.exp(SHARPNESS * (likeness[near] - best))
        silent = (moved == STAYS_SILENT) | (moved == ENDS)
        if voice == 0:
            known, interval = moved < STAYS_SILENT, moved.astype(np.int64)
        else:
            soprano, own = pitches_vp[0, near].astype(np.int64), pitches_vp[voice, near].astype(np.int64)
            known, interval = (soprano != REST) & (own != REST), last[0] + own - soprano - last[voice]
        weights = weights * (known | silent)
        total = weights.sum()
        if total > 0:
            classes = np.where(silent, CLASSES - 1, interval.clip(-REACH, REACH) + REACH)
            into[:CLASSES] = np.bincount(classes, weights=weights, minlength=CLASSES) / total
            into[CLASSES:] = best / 5, 1.0

    def push(self, pitch_b: np.ndarray) -> None:
        """Takes the next token of each row: a MIDI pitch or `REST`."""
        frame, voice = divmod(self.count, 4)
        place = frame % BEAT
        self._frame[:, voice] = pitch_b
        self._last[:, voice] = np.where(pitch_b == REST, self._last[:, voice], pitch_b)
        self.count += 1
        if voice == 0:
            moved = np.full(len(pitch_b), NONE) if frame == 0 else movement(self._before[:, 0], self._frame[:, 0])
            self._same = self.memory.moved_vp[place][0] == moved[:, None]
            for piece in self.left_out:
                self._same[:, piece] = False
            self._now = self._likeness + np.float32(SOPRANO) * self._same[:, None]
        elif voice < 3:
            chord = self.memory.chord_vp[place][voice - 1] == _chord(self._frame)[:, voice - 1, None]
            self._now += np.float32(CHORD) * (self._same & chord)[:, None]
        else:
            self._end_frame(frame)

    def _end_frame(self, frame: int) -> None:
        """Compares the frame with all places, and goes on to the next one."""
        place = frame % BEAT
        moved = np.full_like(self._frame, NONE) if frame == 0 else movement(self._before, self._frame)
        self._notes += (moved != 0)[:, :, None]
        self._notes *= self.memory.moved_vp[place] == moved[:, :, None]
        chord = _chord(self._frame)[:, :, None]
        agreeing = 1 + sum((self.memory.chord_vp[place][voice] == chord[:, voice]).view(np.int8) for voice in range(3))
        self._likeness *= np.array(DECAYS, np.float32)[:, None]
        self._likeness += (self._same * (np.float32(0.25) * agreeing))[:, None]
        for piece in self.left_out:
            self._notes[:, :, piece] = 0
        if place == BEAT - 1:  # the next frame is compared with the places one further
            for state in (self._notes, self._likeness):
                state[..., 1:] = state[..., :-1].copy()
                state[..., :1] = 0
        self._before, self._now = self._frame.copy(), self._likeness

    def select(self, rows: np.ndarray) -> None:
        """Makes row i a copy of the former row rows[i]; their number may change."""
        for name in ("_notes", "_likeness", "_now", "_same", "_before", "_frame", "_last"):
            setattr(self, name, getattr(self, name)[rows])
