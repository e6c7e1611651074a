"""MidiTok's schemes as one stream of integers: REMI, TSD, MIDILike and Octuple, with byte-pair encoding on request."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from symusic import Note, Score

from etude.music.form import mark_plan
from etude.tokens.bpe import BytePairGrammar, BytePairs
from etude.tokens.form_grammar import FormGrammar
from etude.tokens.grammar import Decoder, Grammar
from etude.tokens.infilling import Bars, Infilled, draw_holes, reordered, uncounted
from etude.tokens.miditok_config import DRUM_PITCHES, build
from etude.tokens.miditok_parts import apart, named, numbered, restore
from etude.tokens.miditok_preparation import cut_at_next_onset, prepare, supported_metre
from etude.tokens.miditok_timeline import bar_starts, features, missing_offs
from etude.tokens.miditok_vocabulary import (
    BAR,
    MAX_POSITIONS,
    PITCHED,
    TEMPO,
    TIME_SHIFT,
    VELOCITY,
    TokenTable,
)
from etude.tokens.octuple_decoding import decode_rows
from etude.tokens.octuple_grammar import NAMES, OctupleGrammar
from etude.tokens.plans import FORM_TOKENS, plan_of, with_plan, without_plan, written_letters
from etude.tokens.remi_grammar import RemiGrammar
from etude.tokens.requests import form_asked
from etude.tokens.restrictions import Restrictions, owners_of_programs
from etude.tokens.shift_grammar import ShiftGrammar
from etude.tokens.tokenizer import Labels, Prompt, Tokenizer
from etude.tokens.wished_grammar import restricted
from etude.tokens.wishes import Wishes

TICKS_PER_QUARTER = 480
NO_NOTES = f"the piece has only drum notes outside {DRUM_PITCHES[0]}-{DRUM_PITCHES[1]}; leave it out"
SCHEMES = ("REMI", "TSD", "MIDILike", "Octuple")
MAX_PARTS = 64


class MidiTokTokenizer(Tokenizer):
    """A tokenizer of one of MidiTok's schemes, with all tracks in one stream.

    Time has 12 positions per beat of the metre (sixteenths and triplets). Durations have 12 steps per beat up to 4 beats,
    then 4 up to 12 beats, then 1 up to 32. Not represented are: tracks of one program beyond `parts` (they join the last
    part), names of tracks, key signatures, pedals, pitch bends and controllers, drum notes outside 27-88, and the notation
    of cut time (2/2 becomes 4/4). In MIDILike a note is cut where the same pitch begins again, since a NoteOff could end
    either. Rest tokens are not used, since MidiTok counts them from the end of the last note, which would hide the metre.
    Octuple is flattened to eight tokens per note, time first; it can't represent a change of metre in a bar without an
    onset.

    Args:
        genres: genre labels, each with a control token.
        scheme: REMI (bars and positions), TSD (time shifts and durations), MIDILike (note on, note off) or Octuple.
        num_velocities: velocity bins, 1-127.
        num_tempos: tempo bins, evenly spaced on a logarithmic scale from tempo_low to tempo_high.
        tempo_low, tempo_high: beats per minute.
        program_changes: write a Program token only where the program changes; False writes one before every note.
        max_bars: for Octuple, the largest number of bars; longer pieces are refused.
        bpe_vocab_size: size of the vocabulary after `train_bpe`; None for no byte pairs.
        merges: learnt pairs, as in `state_dict`.
        parts: for REMI, how many tracks of one program stay apart; with 1 they become one track.
        infill: for REMI without byte pairs, whether there are tokens for infilling, see `etude.tokens.infilling`.
        form: for REMI without byte pairs, whether a plan of its bars precedes each piece, see `etude.tokens.plans`.
    """

    def __init__(
        self,
        *,
        genres: Sequence[str] = (),
        scheme: str = "REMI",
        num_velocities: int = 16,
        num_tempos: int = 37,
        tempo_low: int = 30,
        tempo_high: int = 240,
        program_changes: bool = True,
        max_bars: int = 512,
        bpe_vocab_size: int | None = None,
        merges: Sequence[Sequence[int]] | None = None,
        parts: int = 1,
        infill: bool = False,
        form: bool | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"scheme is {scheme!r}; valid: {', '.join(SCHEMES)}")
        if not 1 <= parts <= MAX_PARTS or (parts > 1 and scheme != "REMI"):
            raise ValueError(f"parts is {parts}; give 1 to {MAX_PARTS} with scheme=REMI, and 1 with {scheme}")
        for name, wanted in (("infill", infill), ("form", form)):
            if wanted and (scheme != "REMI" or bpe_vocab_size is not None):
                raise ValueError(f"{name}=true needs scheme=REMI without byte pairs; set {name}=false, or tokenizer=remi")
        if not (1 <= num_velocities <= 127 and num_tempos >= 2 and 0 < tempo_low < tempo_high and max_bars >= 1):
            raise ValueError(
                f"num_velocities, num_tempos, tempo_low, tempo_high, max_bars are {num_velocities}, {num_tempos}, "
                f"{tempo_low}, {tempo_high}, {max_bars}; give 1-127, at least 2, 0 < low < high, at least 1"
            )
        self.scheme, self.max_bars, self.bpe_vocab_size = scheme, max_bars, bpe_vocab_size
        self.parts, self.can_infill, self.can_plan = parts, infill, bool(form)
        self.program_changes = program_changes and scheme != "Octuple"
        params = {
            "scheme": scheme,
            "num_velocities": num_velocities,
            "num_tempos": num_tempos,
            "tempo_low": tempo_low,
            "tempo_high": tempo_high,
            "program_changes": program_changes,
            "max_bars": max_bars,
            "bpe_vocab_size": bpe_vocab_size,
            "merges": None,
            **({"parts": parts} if parts > 1 else {}),  # left out where they are off, as in checkpoints from before they existed
            **({"infill": True} if infill else {}),
            **({"form": True} if form else {}),
        }
        self._miditok = build(
            scheme,
            num_velocities=num_velocities,
            num_tempos=num_tempos,
            tempo_range=(tempo_low, tempo_high),
            program_changes=self.program_changes,
            max_bars=max_bars,
        )
        super().__init__(genres=genres, body=self._body(), params=params)
        self._base_size = len(self.vocab)
        self.table = TokenTable(self.vocab, first_body=self.first_body)
        self._base_vocab = list(self.vocab)
        self._by_shift = scheme in ("TSD", "MIDILike")
        self._set_pairs(merges or ())

    def _body(self) -> list[str]:
        vocab = self._miditok.vocab
        if self.scheme != "Octuple":
            body = [token for token in sorted(vocab, key=vocab.get) if token != "PAD_None"]
            parts = [f"Part_{part}" for part in range(1, self.parts)]
            holes = ["Ahead_None", "Back_None"] if self.can_infill else []
            return [*body, *parts, *holes, *(FORM_TOKENS if self.can_plan else [])]
        # the fields of MidiTok's compound tokens in our order; its Pitch field includes drums
        self._order = [self._miditok.vocab_types_idx[name] for name in NAMES]
        fields = [[t for t in sorted(vocab[i], key=vocab[i].get) if t != "PAD_None"] for i in self._order]
        self._field_starts = np.cumsum([0, *map(len, fields)])[:-1]
        return [token for field in fields for token in field]

    # --- byte pairs ---

    def _set_pairs(self, merges: Sequence[Sequence[int]]) -> None:
        starts_word = self.table.mask(TIME_SHIFT if self._by_shift else BAR)
        starts_word[: self.first_body + 1] = True
        self._pairs = BytePairs(merges, base_size=self._base_size, starts_word=starts_word)
        self.params["merges"] = [list(merge) for merge in self._pairs.merges] or None
        merged = ["+".join(self._base_vocab[i] for i in e) for e in self._pairs.expansions[self._base_size :]]
        self.vocab = [*self._base_vocab, *merged]
        self.__dict__.pop("_grammar", None)

    def train_bpe(self, pieces: Iterable[np.ndarray], *, vocab_size: int | None = None) -> None:
        """Learns byte pairs from pieces; afterwards `vocab` and `len` include the merged tokens.

        Args:
            pieces: base ids, as `encode` returns them.
            vocab_size: the size of the whole vocabulary; `bpe_vocab_size` by default.

        Raises:
            ValueError: no size given, or one not above the base vocabulary's.
        """
        size = vocab_size or self.bpe_vocab_size
        if size is None:
            raise ValueError("vocab_size is None and so is bpe_vocab_size; give the size of the vocabulary with merges")
        trained = BytePairs.train(pieces, vocab_size=size, base_size=self._base_size, starts_word=self._pairs.starts_word)
        self._set_pairs(trained.merges)

    @property
    def base_size(self) -> int:
        return self._base_size

    def compress(self, ids: np.ndarray) -> np.ndarray:
        return self._pairs.compress(ids)

    def expand(self, ids: np.ndarray) -> np.ndarray:
        return self._pairs.expand(ids)

    # --- scores ---

    def encode(self, score: Score) -> np.ndarray:
        """Encodes a piece as base ids.

        Raises:
            ValueError: no notes, a metre that can't be represented, or too many bars for Octuple.
        """
        prepared = prepare(score, tempos=self._miditok.tempos)
        if self.scheme == "Octuple":
            return self._encode_octuple(prepared)
        prepared, owners = apart(prepared, parts=self.parts)
        ids = np.array(self._miditok_ids(self._quantised(prepared)), dtype=np.int32)
        ids = ids + np.int32(self.first_body - 1)  # MidiTok's own PAD is dropped
        if not self.table.mask(VELOCITY)[ids].any():
            raise ValueError(NO_NOTES)
        ids = named(ids, owners, self.table) if owners else ids
        return with_plan(ids, self.table) if self.can_plan else ids

    def _quantised(self, prepared: Score) -> Score:
        """Rounds the score to MidiTok's grid and sorts notes with the same onset by pitch, which MidiTok does not do."""
        quantised: Score = self._miditok.preprocess_score(prepared)
        for track in quantised.tracks:
            notes = track.notes.numpy()
            if self.scheme == "MIDILike":
                notes["duration"] = cut_at_next_onset(notes["time"], notes["duration"], notes["pitch"])
            order = np.lexsort((notes["velocity"], notes["duration"], notes["pitch"], notes["time"]))
            track.notes = Note.from_numpy(**{name: values[order] for name, values in notes.items()})
        return quantised

    def _miditok_ids(self, quantised: Score) -> list[int]:
        ids: list[int] = self._miditok.encode(quantised, encode_ids=False, no_preprocess_score=True).ids
        return ids

    def _encode_octuple(self, prepared: Score) -> np.ndarray:
        from etude.music.score import bar_ticks

        quantised = self._quantised(prepared)
        onsets = [int(track.notes.numpy()["time"].max()) for track in quantised.tracks if len(track.notes)]
        # bars in which notes begin: the last notes may ring on beyond the bars that Octuple numbers
        bars = int(np.searchsorted(bar_ticks(quantised), max(onsets, default=0), side="right"))
        if bars > self.max_bars:
            raise ValueError(f"the piece has {bars} bars, Octuple holds {self.max_bars}; raise max_bars or cut the piece")
        notes = np.array(self._miditok_ids(quantised), dtype=np.int32).reshape(-1, len(NAMES))
        if len(notes) == 0:
            raise ValueError(NO_NOTES)
        offsets = (self._field_starts + self.first_body - 1).astype(np.int32)
        return (notes[:, self._order] + offsets).reshape(-1)

    def check_request(self, labels: Mapping[str, object]) -> None:
        super().check_request(labels)
        if labels.get("metre") is not None:
            numerator, denominator = (int(part) for part in str(labels["metre"]).split("/"))
            supported_metre(numerator, denominator)

    def decode(self, ids: Sequence[int] | np.ndarray) -> Score:
        from miditok import TokSequence

        ids = np.asarray(ids, dtype=np.int64)
        tempo = self._control_tempo(ids)
        base = self.expand(ids)
        whole = base[base >= self.first_body]
        body = without_plan(whole, self.table)
        if self.scheme == "MIDILike":
            body = np.append(body, missing_offs(body, self.table, self._id)).astype(np.int64)
        if self.scheme == "Octuple":
            body = body[: len(body) // len(NAMES) * len(NAMES)]
        if not len(body):
            return Score(TICKS_PER_QUARTER)
        if self.scheme == "Octuple":
            score = decode_rows(body.reshape(-1, len(NAMES)), table=self.table, tempos=self._tempos)
        else:
            body, owners = numbered(body, self.table)
            tokens = TokSequence(tokens=[self._base_vocab[i] for i in body.tolist()])
            score = self._miditok.decode(tokens).resample(TICKS_PER_QUARTER, min_dur=1)
            restore(score, owners)
            if self.can_plan:
                mark_plan(score, *written_letters(whole, self.table))
        for track in score.tracks:
            track.notes.sort()
        if tempo is not None and not (self.table.kind[body] == TEMPO).any():
            score.tempos[0].qpm = tempo
        return score

    @cached_property
    def _tempos(self) -> np.ndarray:
        """Beats per minute of each base id, 0 where it is no Tempo token."""
        words = [token.removeprefix("Tempo_") if token.startswith("Tempo_") else "0" for token in self._base_vocab]
        return np.array(words, dtype=np.float64)

    # --- what is asked for ---

    def decoder(
        self,
        batch: int,
        *,
        num_bars: int | None = None,
        labels: Labels = None,
        prompt: Prompt = None,
        wishes: Wishes | None = None,
    ) -> Decoder:
        """Like the base class; with REMI, programs, metre and tempo that are asked for are all that may be written.

        With a prompt and no programs, its tracks alone go on. With byte pairs, labels are kept to only without a prompt. Where
        there is a plan, it is kept to, and to the form that is asked for.
        """
        wanted = self._restrictions(labels or {}, None if prompt is None else np.asarray(prompt))
        if wishes is not None:
            self.check_wishes(wishes)
        elif self.scheme != "REMI" or (wanted is None and not self.can_plan) or (self._pairs.merges and wanted and wanted.free):
            return super().decoder(batch, num_bars=num_bars)
        grammar: Grammar = restricted(self.table, wanted or Restrictions(), program_changes=self.program_changes, wishes=wishes)
        grammar = BytePairGrammar(grammar, self._pairs) if self._pairs.merges else grammar
        if self.can_plan:
            given = () if prompt is None else plan_of(np.asarray(prompt), self.table)
            grammar = FormGrammar(grammar, self.table, form=form_asked(self, labels or {}, num_bars), given=given)
        return Decoder(grammar, batch=batch, first_body=self.first_body, num_bars=num_bars)

    def check_wishes(self, wishes: Wishes) -> None:
        if self.scheme != "REMI" or self._pairs.merges:
            super().check_wishes(wishes)

    def _restrictions(self, labels: Mapping[str, object], prompt: np.ndarray | None) -> Restrictions | None:
        programs, metre, tempo = (labels.get(name) for name in ("programs", "metre", "tempo_bpm"))
        owners = None if programs is None else owners_of_programs(list(programs), parts=self.parts)  # type: ignore[call-overload]
        if prompt is not None and len(prompt):
            mine = frozenset().union(*Bars(self.expand(prompt), self.table).owners)
            owners = mine | (owners or frozenset())
        if owners is None and metre is None and tempo is None:
            return None
        return Restrictions(
            owners=owners,
            metres=() if metre is None else (self._metre_token(str(metre)),),
            tempos=None if tempo is None else frozenset({self._tempo_token(float(tempo))}),  # type: ignore[arg-type]
            free=0 if prompt is None else len(without_plan(prompt, self.table)) if self.can_plan else len(prompt),
        )

    def _metre_token(self, metre: str) -> int:
        numerator, denominator = supported_metre(*(int(part) for part in metre.split("/")))
        return self._id[f"TimeSig_{numerator}/{denominator}"]

    def _tempo_token(self, tempo_bpm: float) -> int:
        ids = self.table.of_kind[TEMPO]
        return int(ids[np.abs(np.log(self._tempos[ids] / tempo_bpm)).argmin()])

    # --- infilling ---

    def infilled(self, ids: np.ndarray, *, seed: int, most_tokens: int) -> Infilled:
        if not self.can_infill:
            return super().infilled(ids, seed=seed, most_tokens=most_tokens)
        bars = Bars(without_plan(ids, self.table), self.table)
        holes = draw_holes(bars, np.random.default_rng(seed), most_tokens=most_tokens)
        return reordered(bars, holes, program_changes=self.program_changes)

    def uncounted(self, ids: np.ndarray) -> np.ndarray:
        return uncounted(np.asarray(ids), self.table) if self.can_infill else super().uncounted(ids)

    # --- maps ---

    def _transpose_body(self, table: np.ndarray, semitones: int) -> None:
        for kind in PITCHED:
            ids = self.table.of_kind[kind]
            target = {int(self.table.number[i]): int(i) for i in ids}
            for i in ids.tolist():
                table[i] = target.get(int(self.table.number[i]) + semitones, -1)

    def _tempo_moves(self, factor: float) -> dict[int, int]:
        ids = self.table.of_kind[TEMPO]
        tempos = self._tempos[ids]
        return {int(i): int(ids[np.abs(np.log(tempos / (t * factor))).argmin()]) for i, t in zip(ids, tempos, strict=True)}

    def _velocity_moves(self, bins: int) -> dict[int, int]:
        ids = self.table.of_kind[VELOCITY]
        targets = np.clip(np.arange(len(ids)) + bins, 0, len(ids) - 1)
        return dict(zip(ids.tolist(), ids[targets].tolist(), strict=True))

    def pitch_range(self, ids: np.ndarray) -> tuple[int, int]:
        base = self.expand(ids)
        pitches = self.table.number[base][np.isin(self.table.kind[base], PITCHED)]
        if len(pitches) == 0:
            raise ValueError("the ids hold no pitch; give a piece with notes other than drums")
        return int(pitches.min()), int(pitches.max())

    # --- structure ---

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        """Like `miditok_timeline.bar_starts`; for merged ids, only bars that begin at the start of a token."""
        ids = np.asarray(ids)
        starts = bar_starts(self.expand(ids), self.table, by_shift=self._by_shift)
        first = np.cumsum(self._pairs.lengths[ids]) - self._pairs.lengths[ids]
        return np.flatnonzero(np.isin(first, starts))

    @property
    def feature_sizes(self) -> dict[str, int]:
        return {"position": MAX_POSITIONS + 1, "voice": 18}

    def features(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Like `miditok_timeline.features`; a merged id has the features of its last base id."""
        ids = np.asarray(ids)
        base = features(self.expand(ids), self.table, by_shift=self._by_shift)
        ends = np.cumsum(self._pairs.lengths[ids]) - 1
        return {name: values[ends] if len(ids) else values for name, values in base.items()}

    @cached_property
    def _grammar(self) -> Grammar:
        base: Grammar
        if self.scheme == "REMI":
            base = RemiGrammar(self.table, program_changes=self.program_changes)
            base = FormGrammar(base, self.table) if self.can_plan else base
        elif self.scheme == "Octuple":
            base = OctupleGrammar(self.table)
        else:
            base = ShiftGrammar(self.table, program_changes=self.program_changes)
        return BytePairGrammar(base, self._pairs) if self._pairs.merges else base

    def grammar(self) -> Grammar:
        return self._grammar
