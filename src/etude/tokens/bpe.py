"""Byte-pair encoding of token ids: frequent pairs of ids become one token; no merge crosses a bar line.

Source: Fradet et al. 2023, "Byte Pair Encoding for Symbolic Music". Deviation: pairs are merged
only within words, which are bars (REMI), notes (Octuple) or the tokens of one time shift (TSD, MIDILike).
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from etude.tokens.grammar import Grammar, State

FIRST_CHARACTER = 0x4E00  # start of 20,000 consecutive characters without white space; id n is written as character n
CACHE_SIZE = 4096
Merge = tuple[int, int]


class BytePairs:
    """Learnt merges of pairs of ids; the n-th merge has id `base_size` + n.

    Args:
        merges: pairs of earlier ids, in the order in which they were learnt.
        base_size: number of ids before merging.
        starts_word: bool [base_size], which base ids begin a word.
    """

    def __init__(self, merges: Sequence[Sequence[int]], *, base_size: int, starts_word: np.ndarray) -> None:
        self.base_size = base_size
        self.starts_word = starts_word
        self.merges: list[Merge] = [(int(left), int(right)) for left, right in merges]
        self.expansions: list[tuple[int, ...]] = [(i,) for i in range(base_size)]
        for left, right in self.merges:
            self.expansions.append(self.expansions[left] + self.expansions[right])
        self._flat = np.concatenate([np.array(e, dtype=np.int32) for e in self.expansions])
        self.lengths = np.array([len(e) for e in self.expansions], dtype=np.int64)
        self._offsets = np.cumsum(self.lengths) - self.lengths
        self._model = _model(self.merges, base_size)

    @classmethod
    def train(cls, pieces: Iterable[np.ndarray], *, vocab_size: int, base_size: int, starts_word: np.ndarray) -> "BytePairs":
        """Learns merges from base ids until there are `vocab_size` ids, or until no pair occurs twice.

        Raises:
            ValueError: vocab_size not above base_size, or above 20,000.
        """
        if not base_size < vocab_size <= 20_000:
            raise ValueError(f"vocab_size is {vocab_size}; give {base_size + 1} to 20000, more than the base vocabulary has")
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        alphabet = [chr(FIRST_CHARACTER + i) for i in range(base_size)]
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        model.train_from_iterator(_texts(pieces, starts_word), trainer)
        return cls(_merges(model.to_str(), base_size), base_size=base_size, starts_word=starts_word)

    def compress(self, ids: np.ndarray) -> np.ndarray:
        """Converts base ids to merged ids, int32."""
        if not self.merges or len(ids) == 0:
            return np.asarray(ids, dtype=np.int32)
        return np.array(self._model.encode(_text(np.asarray(ids), self.starts_word)).ids, dtype=np.int32)

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """Converts merged ids to base ids, int32; inverse of `compress`."""
        ids = np.asarray(ids)
        lengths = self.lengths[ids]
        if len(ids) == 0 or lengths.max() == 1:
            return ids.astype(np.int32)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        base: np.ndarray = self._flat[np.repeat(self._offsets[ids], lengths) + within]
        return base


def _text(ids: np.ndarray, starts_word: np.ndarray) -> str:
    points = (ids.astype(np.uint32) + FIRST_CHARACTER).astype("<u4")
    breaks = np.flatnonzero(starts_word[ids])
    return np.insert(points, breaks, ord(" ")).astype("<u4").tobytes().decode("utf-32-le")


def _texts(pieces: Iterable[np.ndarray], starts_word: np.ndarray) -> Iterator[str]:
    for ids in pieces:
        yield _text(np.asarray(ids), starts_word)


def _merges(text: str, base_size: int) -> list[Merge]:
    """Reads the merges, as ids, of a Hugging Face model in JSON."""
    import json

    ids = {chr(FIRST_CHARACTER + i): i for i in range(base_size)}
    merges: list[Merge] = []
    for left, right in json.loads(text)["model"]["merges"]:
        merges.append((ids[left], ids[right]))
        ids[left + right] = base_size + len(merges) - 1
    return merges


def _model(merges: Sequence[Merge], base_size: int) -> Any:
    if not merges:
        return None
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [chr(FIRST_CHARACTER + i) for i in range(base_size)]
    pairs = []
    for left, right in merges:
        pairs.append((words[left], words[right]))
        words.append(words[left] + words[right])
    model = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return model


class BytePairGrammar(Grammar):
    """The grammar of merged ids: an id is allowed if all tokens of its expansion are allowed one after the other."""

    def __init__(self, base: Grammar, pairs: BytePairs) -> None:
        self._base, self._pairs = base, pairs
        self.feature_names = base.feature_names
        self.vocab_size = len(pairs.expansions)
        self._cache: dict[Hashable, np.ndarray] = {}
        self._trie: dict[int, Any] = {}
        for token in range(pairs.base_size, self.vocab_size):
            node = self._trie
            for part in pairs.expansions[token]:
                node = node.setdefault(part, {})
            node.setdefault(-1, []).append(token)

    def start(self, num_bars: int) -> State:
        return self._base.start(num_bars)

    def step(self, state: State, token: int) -> State:
        for part in self._pairs.expansions[token]:
            state = self._base.step(state, part)
        return state

    def key(self, state: State) -> Hashable:
        return self._base.key(state)

    def mask(self, state: State) -> np.ndarray:
        key = self.key(state)
        mask = self._cache.get(key)
        if mask is None:
            mask = np.zeros(self.vocab_size, dtype=bool)
            mask[: self._pairs.base_size] = self._base.mask(state)
            self._walk(self._trie, state, mask)
            mask.flags.writeable = False
            if len(self._cache) >= CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = mask
        return mask

    def _walk(self, node: dict[int, Any], state: State, mask: np.ndarray) -> None:
        allowed = self._base.mask(state)
        for part, child in node.items():
            if part >= 0 and allowed[part]:
                if -1 in child:
                    mask[child[-1]] = True
                if len(child) > (-1 in child):
                    self._walk(child, self._base.step(state, part), mask)

    def features(self, state: State) -> tuple[int, ...]:
        return self._base.features(state)
