"""A tokenizer for four voices on a grid: one token per voice and step, as in the JSB chorale benchmark."""

from collections.abc import Mapping, Sequence

import numpy as np
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.tokens.grammar import Decoder, Grammar
from etude.tokens.satb_grammar import SatbGrammar
from etude.tokens.satb_voices import REST, metre, reduce_to_frames, runs, voices_to_frames
from etude.tokens.tokenizer import METRES, Labels, Prompt, Tokenizer, program_family
from etude.tokens.wished_satb_grammar import WishedSatbGrammar
from etude.tokens.wishes import Wishes

TICKS_PER_QUARTER = 480
VOICES = ("Soprano", "Alto", "Tenor", "Bass")
CHOIR_AAHS = 52
VELOCITY = 80
MAX_BAR_QUARTERS = 8  # with bar tokens: the longest bar


class SatbGrid(Tokenizer):
    """A tokenizer of frames [T, 4] of soprano, alto, tenor and bass, as 4 T tokens; a note has a token in every step.

    The grid can't represent repeated notes (decoding joins them to one note, also across bar lines), dynamics, tempo changes
    and rhythms finer than a step. A score can be encoded if it has exactly four tracks of one voice each after quantisation.
    Where a voice divides briefly (up to 5 % of its steps), the bass keeps its lowest note and the others their highest.
    Voices are ordered by mean pitch.

    Args:
        genres: genre labels, each with a control token.
        steps_per_beat: steps per quarter note.
        low, high: MIDI pitch range, both included. The default is the benchmark's 36-81, extended for transposition.
        bar_steps: steps per bar if there are no bar tokens; the metrical position is the step modulo this.
        bar_tokens: put a Bar token before the first frame of each bar, which represents metre and upbeats. False for the
            benchmark, which has no metre and counts pitch tokens alone.
    """

    def __init__(
        self,
        *,
        genres: Sequence[str] = (),
        steps_per_beat: int = 4,
        low: int = 31,
        high: int = 88,
        bar_steps: int = 16,
        bar_tokens: bool = False,
    ) -> None:
        if not 0 <= low < high <= 127:
            raise ValueError(f"low, high are {low}, {high}; give MIDI pitches with 0 <= low < high <= 127")
        if steps_per_beat < 1 or bar_steps < 1:
            raise ValueError(f"steps_per_beat, bar_steps are {steps_per_beat}, {bar_steps}; give 1 or more")
        self.steps_per_beat, self.low, self.high = steps_per_beat, low, high
        self.bar_steps, self.bar_tokens = bar_steps, bar_tokens
        body = ["Rest", *(f"Pitch_{p}" for p in range(low, high + 1)), *(["Bar"] if bar_tokens else [])]
        params = {"steps_per_beat": steps_per_beat, "low": low, "high": high, "bar_steps": bar_steps}
        super().__init__(genres=genres, body=body, params={**params, "bar_tokens": bar_tokens})
        self.rest_id = self.first_body
        self.bar_id = self.first_body + 2 + high - low if bar_tokens else -1
        self.max_bar_steps = MAX_BAR_QUARTERS * steps_per_beat if bar_tokens else bar_steps
        self._grammar: SatbGrammar | None = None

    # --- frames ---

    def encode_frames(self, frames: np.ndarray, *, bar_starts: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Encodes frames [T, 4] of MIDI pitches, -1 for a rest.

        Args:
            frames: soprano, alto, tenor, bass per step.
            bar_starts: with bar tokens, the frames at which bars begin; every `bar_steps` by default.

        Returns:
            Ids, int32 [4 T], with bar tokens one more per bar.

        Raises:
            ValueError: wrong shape, or a pitch out of range.
        """
        frames = np.asarray(frames)
        if frames.ndim != 2 or frames.shape[1] != 4 or len(frames) == 0:
            raise ValueError(f"frames have shape {frames.shape}; give [T, 4] for four voices, with T >= 1")
        pitches = frames[frames != REST]
        if pitches.size and not (self.low <= pitches.min() and pitches.max() <= self.high):
            raise ValueError(
                f"pitches span {pitches.min()}-{pitches.max()}, the tokenizer's range is {self.low}-{self.high}; "
                "transpose the piece or widen low and high"
            )
        ids = np.where(frames == REST, self.rest_id, frames - self.low + self.rest_id + 1).astype(np.int32)
        if not self.bar_tokens:
            return ids.reshape(-1)
        starts = np.arange(0, len(frames), self.bar_steps) if bar_starts is None else np.asarray(bar_starts)
        return np.insert(ids.reshape(-1), starts * 4, self.bar_id).astype(np.int32)

    def decode_frames(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decodes the body tokens among ids to frames int16 [T, 4]; an incomplete last frame is dropped."""
        body = self._voices(np.asarray(ids))
        frames = body[: len(body) // 4 * 4].reshape(-1, 4) - self.rest_id - 1
        return np.where(frames < 0, REST, frames + self.low).astype(np.int16)

    def _voices(self, ids: np.ndarray) -> np.ndarray:
        voices: np.ndarray = ids[(ids >= self.first_body) & (ids != self.bar_id)].astype(np.int64)
        return voices

    # --- scores ---

    def encode(self, score: Score) -> np.ndarray:
        frames = voices_to_frames(score, steps_per_beat=self.steps_per_beat)
        return self.encode_frames(frames, bar_starts=self._score_bars(score, len(frames)))

    def encode_prompt(self, score: Score) -> np.ndarray:
        """Like `encode`, but a score that is not in four voices is reduced to four notes per step, within the range."""
        try:
            return self.encode(score)
        except ValueError:
            frames = reduce_to_frames(score, steps_per_beat=self.steps_per_beat, low=self.low, high=self.high)
        return self.encode_frames(frames, bar_starts=self._score_bars(score, len(frames)))

    def check_request(self, labels: Mapping[str, object]) -> None:
        super().check_request(labels)
        programs, metre_asked = labels.get("programs"), labels.get("metre")
        if isinstance(programs, Sequence) and any(program_family(int(p)) != CHOIR_AAHS // 8 for p in programs):
            raise ValueError(
                f"programs={list(programs)}: the SATB grid writes four voices of program {CHOIR_AAHS} (choir) alone; leave "
                "programs out, or take a model with tokenizer=remi"
            )
        if metre_asked is None:
            return
        beats, unit = (int(part) for part in str(metre_asked).split("/"))
        steps, rest = divmod(4 * beats * self.steps_per_beat, unit)
        longest = f"bars of up to {self.max_bar_steps} steps" if self.bar_tokens else f"bars of {self.bar_steps} steps"
        if rest or steps > self.max_bar_steps or (not self.bar_tokens and steps != self.bar_steps):
            raise ValueError(
                f"metre={metre_asked}: this SATB grid writes {longest}, {self.steps_per_beat} to a quarter note, and can't hold "
                "it; leave metre out, or take a model with tokenizer=remi or tokenizer.bar_tokens=true"
            )
        written = "{}/{}".format(*metre(steps, steps_per_beat=self.steps_per_beat))
        if metre_asked not in METRES and metre_asked != written:
            raise ValueError(
                f"metre={metre_asked}: this SATB grid writes bars of that length as {written}; ask for metre={written} or one "
                f"of {', '.join(METRES[:-1])}, or take a model with tokenizer=remi"
            )

    def _score_bars(self, score: Score, num_frames: int) -> np.ndarray | None:
        if not self.bar_tokens:
            return None
        from etude.music.score import bar_ticks

        steps = np.asarray(bar_ticks(score)) * self.steps_per_beat / score.ticks_per_quarter
        starts = np.unique(np.append(0, np.rint(steps).astype(np.int64)))
        starts = starts[starts < num_frames]
        longest = np.diff(np.append(starts, num_frames)).max()
        if longest > self.max_bar_steps:
            raise ValueError(
                f"a bar is {longest} steps long, the grid has bars of up to {self.max_bar_steps}; use tokenizer=remi"
            )
        return starts

    def decode(self, ids: Sequence[int] | np.ndarray) -> Score:
        ids = np.asarray(ids)
        frames = self.decode_frames(ids)
        step = TICKS_PER_QUARTER // self.steps_per_beat
        score = Score(TICKS_PER_QUARTER)
        for voice, name in enumerate(VOICES):
            track = Track(name=name, program=CHOIR_AAHS)
            for start, end, pitch in runs(frames[:, voice]):
                track.notes.append(Note(start * step, (end - start) * step, pitch, VELOCITY))
            if len(track.notes):
                score.tracks.append(track)
        score.tempos.append(Tempo(0, qpm=self._control_tempo(ids) or 120.0))
        asked = self._control_metre(ids)
        for start, length in self._bars(ids, len(frames)):
            numerator, denominator = metre(length, steps_per_beat=self.steps_per_beat)
            if asked is not None and asked[0] * denominator == numerator * asked[1]:
                numerator, denominator = asked  # bars of 6/8 are as long as those of 3/4
            score.time_signatures.append(TimeSignature(start * step, numerator, denominator))
        return score

    def _bars(self, ids: np.ndarray, num_frames: int) -> list[tuple[int, int]]:
        """Returns (start, length) in steps of the first bar and of every bar whose length differs from the previous one."""
        if not self.bar_tokens:
            return [(0, self.bar_steps)]
        body = ids[ids >= self.first_body]
        starts = np.cumsum(body != self.bar_id)[body == self.bar_id] // 4
        if len(starts) == 0:
            return [(0, self.bar_steps)]
        lengths = np.diff(np.append(starts, num_frames))
        if len(lengths) > 1 and lengths[-1] < lengths[-2]:
            lengths[-1] = lengths[-2]  # an incomplete last bar has the metre of the bar before it
        change = np.append(True, np.diff(lengths) != 0) & (lengths > 0)
        return [(int(s), int(n)) for s, n in zip(starts[change], lengths[change], strict=True)]

    # --- maps and structure ---

    def _transpose_body(self, table: np.ndarray, semitones: int) -> None:
        pitch = np.arange(self.low, self.high + 1)
        moved = pitch + semitones
        inside = (moved >= self.low) & (moved <= self.high)
        table[pitch - self.low + self.rest_id + 1] = np.where(inside, moved - self.low + self.rest_id + 1, -1)

    def pitch_range(self, ids: np.ndarray) -> tuple[int, int]:
        voices = self._voices(np.asarray(ids))
        pitches = voices[voices != self.rest_id] - self.rest_id - 1 + self.low
        if len(pitches) == 0:
            raise ValueError("the ids hold no pitch; give a piece with notes")
        return int(pitches.min()), int(pitches.max())

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        if self.bar_tokens:
            return np.flatnonzero(ids == self.bar_id)
        return np.flatnonzero(ids >= self.first_body)[:: 4 * self.bar_steps]

    @property
    def feature_sizes(self) -> dict[str, int]:
        return {"position": self.max_bar_steps + 1, "voice": 5}

    def features(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """position: 1 + step within the bar (a Bar token has 1); voice: 1 soprano to 4 bass (a Bar token has 0)."""
        ids = np.asarray(ids)
        is_body = ids >= self.first_body
        is_voice = is_body & (ids != self.bar_id)
        count = np.cumsum(is_voice) - 1
        frame = count // 4
        if self.bar_tokens:
            frame_of_bar = np.where(ids == self.bar_id, (count + 1) // 4, 0)
            frame = np.where(is_voice, frame - np.maximum.accumulate(frame_of_bar), 0)
        position = np.where(is_body, frame % self.max_bar_steps + 1, 0)
        return {"position": position, "voice": np.where(is_voice, count % 4 + 1, 0)}

    def check_wishes(self, wishes: Wishes) -> None:
        if given := [name for name in wishes.options if name not in ("chords", "register")]:
            raise ValueError(f"{given[0]} can't be asked of the SATB grid, whose four voices always sound; leave {given[0]} out")
        if self.bar_tokens:
            raise ValueError(
                f"{wishes.options[0]} can't be kept to on a grid with bars of any length; take a model with tokenizer=remi, or "
                "tokenizer.bar_tokens=false"
            )

    def decoder(
        self, batch: int, *, num_bars: int | None = None, labels: Labels = None, prompt: Prompt = None,
        wishes: Wishes | None = None,
    ) -> Decoder:  # fmt: skip
        """Like the base class; chords and registers are kept to."""
        if wishes is None:
            return super().decoder(batch, num_bars=num_bars, labels=labels, prompt=prompt)
        self.check_wishes(wishes)
        inner = self.grammar()
        assert isinstance(inner, SatbGrammar)
        grammar = WishedSatbGrammar(
            inner, wishes, rest_id=self.rest_id, low=self.low, num_pitches=self.high - self.low + 1, bar_steps=self.bar_steps,
            steps_per_beat=self.steps_per_beat, free=0 if prompt is None else len(prompt),
        )  # fmt: skip
        return Decoder(grammar, batch=batch, first_body=self.first_body, num_bars=num_bars)

    def grammar(self) -> Grammar:
        if self._grammar is None:
            self._grammar = SatbGrammar(
                rest_id=self.rest_id,
                bar_id=self.bar_id,
                vocab_size=len(self),
                bar_steps=self.max_bar_steps,
            )
        return self._grammar
