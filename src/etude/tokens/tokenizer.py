"""The base class of tokenizers: a score is one sequence of integer ids, whatever the scheme.

The vocabulary consists of special tokens (PAD, BOS, EOS, CONT), then control tokens (properties of a piece, such as its
key), then the body tokens of the scheme. Augmentations are maps id -> id, so that cached tokens can be transposed while
they are read.
"""

import hashlib
import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from symusic import Score

from etude.moved import current_name
from etude.tokens.grammar import Decoder, Grammar

if TYPE_CHECKING:
    from etude.tokens.infilling import Infilled
    from etude.tokens.wishes import Wishes

SPECIALS = ("<pad>", "<bos>", "<eos>", "<cont>")
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
MODES = ("major", "minor")
METRES = ("2/2", "3/2", "4/2", "2/4", "3/4", "4/4", "5/4", "6/4", "3/8", "6/8", "9/8", "12/8", "other")
LENGTHS = (
    *range(1, 17),
    18,
    20,
    22,
    24,
    28,
    32,
    40,
    48,
    64,
    80,
    96,
    128,
    192,
    256,
)  # in bars; other lengths are rounded to the nearest
TEMPO_BINS = tuple(round(40 * 2 ** (i / 4)) for i in range(11))  # 40 to 226 beats per minute, 4 bins per octave
FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe",
    "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects", "drums",
)  # fmt: skip
Labels = Mapping[str, object] | None
Prompt = np.ndarray | None
LABELS = ("genre", "key", "metre", "tempo_bpm", "num_bars", "programs")
WISHES = ("chords", "chords_strict", "register", "polyphony", "density")  # kept to in decoding, without tokens, see `wishes`
FORM = ("form", "form_bars")  # kept to by a plan, see `plans`


def program_family(program: int) -> int:
    """Returns the General MIDI family 0-15 of a program 0-127, and 16 for drums (-1 or 128).

    Raises:
        ValueError: outside -1..128.
    """
    if not -1 <= program <= 128:
        raise ValueError(f"program is {program}; General MIDI programs are 0-127, drums are -1 or 128")
    return 16 if program in (-1, 128) else program // 8


class Tokenizer(ABC):
    """Converts scores to ids and back, with augmentation maps, token features and constrained decoding.

    For every subclass: `encode(transpose(score, n)) == transposition(n)[encode(score)]` if no id maps to -1.

    Args:
        genres: the genre labels of the corpus; each has a control token.
        body: the body tokens of the scheme.
        params: the constructor arguments except `genres`, as plain values; they identify the tokenizer.
    """

    def __init__(self, *, genres: Sequence[str], body: Sequence[str], params: Mapping[str, Any]) -> None:
        self.genres = tuple(sorted(set(genres)))
        self.params = dict(params)
        controls = [
            *(f"genre:{genre}" for genre in self.genres),
            *(f"key:{tonic} {mode}" for mode in MODES for tonic in TONICS),
            *(f"metre:{metre}" for metre in METRES),
            *(f"tempo:{tempo}" for tempo in TEMPO_BINS),
            *(f"bars:{length}" for length in LENGTHS),
            *(f"instrument:{family}" for family in FAMILIES),
        ]
        self.first_body = len(SPECIALS) + len(controls)
        self.vocab: list[str] = [*SPECIALS, *controls, *body]
        self._id = {token: i for i, token in enumerate(self.vocab)}

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of class, parameters and vocabulary: tokenizers with equal fingerprints give equal ids."""
        identity = [type(self).__name__, self.params, self.genres, self.vocab]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    # --- scores ---

    @abstractmethod
    def encode(self, score: Score) -> np.ndarray:
        """Returns the body ids of a piece, int32, without BOS, EOS and control tokens.

        Raises:
            ValueError: the scheme can't represent the piece; the message says why and what to do.
        """

    def encode_prompt(self, score: Score) -> np.ndarray:
        """Like `encode`, but may simplify a piece that the scheme can't represent; for prompts."""
        return self.encode(score)

    def check_request(self, labels: Mapping[str, object]) -> None:
        """Checks labels that are asked of samples.

        Raises:
            ValueError: a label without a token, or one that no piece of this scheme can have, such as an unsupported metre.
        """
        self.controls(labels)

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> Score:
        """Decodes ids to a score of 480 ticks per quarter; an incomplete sequence is decoded as far as possible.

        Special and control tokens are skipped, except that a tempo control sets the tempo if the body has none. On the chorale
        grid a metre control names the bars of its length: 6/8, not 3/4.
        """

    # --- controls ---

    def controls(self, labels: Mapping[str, object]) -> list[int]:
        """Returns the control ids of a piece's labels, in a fixed order; labels that are missing or None are left out.

        Args:
            labels: any of genre (str), key ("G major"), metre ("3/4"; rare ones become "other"), tempo_bpm (the nearest
                of 11 from 40 to 226), num_bars (the nearest of 30 up to 256), programs (list of General MIDI programs,
                by family). What is asked of the notes (`WISHES`) or of the plan (`FORM`) has none here.

        Raises:
            ValueError: an unknown label, genre or key, or an invalid value; the message lists the valid ones.
        """
        for name in labels:
            if name not in (*LABELS, *WISHES, *FORM):
                raise ValueError(f"label {name!r} is unknown; valid: {', '.join(LABELS)}")
        ids: list[int] = []
        for name in LABELS:
            value = labels.get(name)
            if value is not None:
                ids += [self._id[token] for token in getattr(self, f"_{name}_tokens")(value)]
        return ids

    def _genre_tokens(self, genre: object) -> list[str]:
        if genre not in self.genres:
            raise ValueError(f"genre {genre!r} is unknown to this tokenizer; valid: {', '.join(self.genres) or 'none'}")
        return [f"genre:{genre}"]

    def _key_tokens(self, key: object) -> list[str]:
        from etude.music.theory import Key

        parsed = Key.parse(str(key))
        return [f"key:{TONICS[parsed.tonic]} {parsed.mode}"]

    def _metre_tokens(self, metre: object) -> list[str]:
        if not re.fullmatch(r"[1-9]\d*/[1-9]\d*", str(metre)):
            raise ValueError(f"metre {metre!r} is not of the form 3/4; with a token of their own: {', '.join(METRES)}")
        return [f"metre:{metre if metre in METRES else 'other'}"]

    def _tempo_bpm_tokens(self, tempo_bpm: object) -> list[str]:
        tempo = _positive("tempo_bpm", tempo_bpm)
        return [f"tempo:{min(TEMPO_BINS, key=lambda t: abs(np.log(t / tempo)))}"]

    def _num_bars_tokens(self, num_bars: object) -> list[str]:
        length = _positive("num_bars", num_bars)
        return [f"bars:{min(LENGTHS, key=lambda bars: abs(np.log(bars / length)))}"]

    def _programs_tokens(self, programs: object) -> list[str]:
        if isinstance(programs, str) or not isinstance(programs, Sequence | np.ndarray):
            raise ValueError(f"programs is {programs!r}; give a list of General MIDI programs, such as [0, 40]")
        return [f"instrument:{FAMILIES[f]}" for f in sorted({program_family(int(p)) for p in programs})]

    def _control_tempo(self, ids: np.ndarray) -> float | None:
        """Returns the tempo in beats per minute of a tempo control among the ids, None without one."""
        for token in ids[ids < self.first_body].tolist():
            if self.vocab[token].startswith("tempo:"):
                return float(self.vocab[token].removeprefix("tempo:"))
        return None

    def _control_metre(self, ids: np.ndarray) -> tuple[int, int] | None:
        """Returns (numerator, denominator) of a metre control among the ids; None without one or for `metre:other`."""
        for token in ids[ids < self.first_body].tolist():
            prefix, _, value = self.vocab[token].partition(":")
            if prefix == "metre" and value != "other":
                numerator, denominator = value.split("/")
                return int(numerator), int(denominator)
        return None

    # --- augmentation maps ---

    def transposition(self, semitones: int) -> np.ndarray:
        """Returns the map of ids for a transposition by `semitones`: int32 [V], -1 where a pitch leaves the range.

        Key controls are transposed too; drums stay the same.
        """
        table = np.arange(self.base_size, dtype=np.int32)
        for i, tonic in enumerate(TONICS):
            for mode in MODES:
                table[self._id[f"key:{tonic} {mode}"]] = self._id[f"key:{TONICS[(i + semitones) % 12]} {mode}"]
        self._transpose_body(table, semitones)
        return table

    @abstractmethod
    def _transpose_body(self, table: np.ndarray, semitones: int) -> None:
        """Writes the map of the body's pitch tokens into `table`."""

    def tempo_scaling(self, factor: float) -> np.ndarray:
        """Returns the map of ids for playing `factor` times as fast: int32 [V].

        Tempo tokens and tempo controls are mapped to the bin nearest to the scaled tempo, within the tempo range.

        Raises:
            ValueError: factor not above 0.
        """
        _positive("factor", factor)
        table = np.arange(self.base_size, dtype=np.int32)
        for tempo in TEMPO_BINS:
            (target,) = self._tempo_bpm_tokens(tempo * factor)
            table[self._id[f"tempo:{tempo}"]] = self._id[target]
        for token, target_id in self._tempo_moves(factor).items():
            table[token] = target_id
        return table

    def _tempo_moves(self, factor: float) -> dict[int, int]:
        """Returns the map of the body's tempo tokens; empty if the scheme has none."""
        return {}

    def velocity_scaling(self, bins: int) -> np.ndarray:
        """Returns the map of ids for playing `bins` velocity bins louder (softer below 0): int32 [V], within the range."""
        table = np.arange(self.base_size, dtype=np.int32)
        for token, target in self._velocity_moves(bins).items():
            table[token] = target
        return table

    def _velocity_moves(self, bins: int) -> dict[int, int]:
        """Returns the map of the body's velocity tokens; empty if the scheme has none."""
        return {}

    @abstractmethod
    def pitch_range(self, ids: np.ndarray) -> tuple[int, int]:
        """Returns the lowest and highest MIDI pitch among the ids, drums left out.

        Raises:
            ValueError: no pitch.
        """

    can_plan = False  # whether a plan of its bars precedes each piece, see `etude.tokens.plans`

    # --- infilling ---

    can_infill = False  # whether there are tokens for it, see `etude.tokens.infilling`

    def infilled(self, ids: np.ndarray, *, seed: int, most_tokens: int) -> "Infilled":
        """Returns base ids with holes at random places.

        Args:
            seed: the same seed gives the same holes.
            most_tokens: of a hole together with what is seen of its surroundings.

        Raises:
            ValueError: the tokenizer can't infill.
        """
        raise ValueError(f"{type(self).__name__} has no tokens for infilling; set tokenizer=remi, or data.infill=0")

    def uncounted(self, ids: np.ndarray) -> np.ndarray:
        """Returns which of the ids tell the place of a hole rather than music, bool [n]; they don't count for the loss."""
        return np.zeros(len(ids), dtype=bool)

    # --- structure ---

    @property
    def base_size(self) -> int:
        """Number of base ids, which the maps are defined on; smaller than `len` if there are byte-pair tokens."""
        return len(self.vocab)

    def compress(self, ids: np.ndarray) -> np.ndarray:
        """Converts base ids to the ids of the model by merging byte pairs; the same ids without byte pairs."""
        return ids

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """Converts the ids of the model to base ids; inverse of `compress`."""
        return ids

    @abstractmethod
    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        """Returns the indices into ids at which bars begin, int64, increasing; long pieces are cut there."""

    @property
    @abstractmethod
    def feature_sizes(self) -> dict[str, int]:
        """Number of values of each feature, including 0 for special and control tokens."""

    @abstractmethod
    def features(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the features of each token: name -> int64 [len(ids)]; 0 for special and control tokens."""

    @abstractmethod
    def grammar(self) -> Grammar:
        """Returns the grammar of this tokenizer's decodable sequences; it is built once."""

    def decoder(
        self, batch: int, *, num_bars: int | None = None, labels: Labels = None, prompt: Prompt = None,
        wishes: "Wishes | None" = None,
    ) -> Decoder:  # fmt: skip
        """Returns a decoder for `batch` sequences; with `num_bars`, EOS is allowed after exactly that many bars.

        labels: what is asked for; a tokenizer that can restrict its grammar to it does. prompt: the body ids that come first.
        wishes: what is asked of the notes, with their tracks, see `named_wishes`; all of it is kept to.

        Raises:
            ValueError: the tokenizer can't keep to the wishes.
        """
        if wishes is not None:
            self.check_wishes(wishes)
        return Decoder(self.grammar(), batch=batch, first_body=self.first_body, num_bars=num_bars)

    def check_wishes(self, wishes: "Wishes") -> None:
        """Raises ValueError for what is asked of notes that tokens of this scheme can't be held to."""
        raise ValueError(
            f"{', '.join(wishes.options)} can't be kept to with the tokens of this model, {type(self).__name__} "
            f"{self.params.get('scheme', '')}; take a model with tokenizer=remi, such as ckpt=bundled"
        )

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values from which `from_state` builds the same tokenizer."""
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "genres": list(self.genres),
            "params": dict(self.params),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Tokenizer":
        """Builds the tokenizer that a `state_dict` describes.

        Raises:
            ValueError: the state names no tokenizer class.
        """
        module, _, name = current_name(str(state["class"])).rpartition(".")
        if not module.startswith("etude."):
            raise ValueError(f"tokenizer class is {state['class']!r}; only classes of etude are allowed")
        cls = getattr(importlib.import_module(module), name, None)
        if not (isinstance(cls, type) and issubclass(cls, Tokenizer) and cls.__module__ == module):
            raise ValueError(f"tokenizer class is {state['class']!r}, which is not a Tokenizer")
        return cls(genres=state["genres"], **state["params"])


def _positive(name: str, value: object) -> float:
    number = float(value) if isinstance(value, int | float | np.number) else float("nan")
    if not number > 0:
        raise ValueError(f"{name} is {value!r}; give a number above 0")
    return number
