"""Constrained decoding: at each step, which tokens keep a piece decodable.

A `Grammar` is a finite automaton over hashable states (tuples), so that masks can be cached per state and
explored ahead (byte-pair tokens are allowed if their expansion is). A `Decoder` runs a batch of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

PAD, BOS, EOS, CONT = 0, 1, 2, 3
UNLIMITED = -1  # the value of "bars left" without a limit
CLOSED = -2  # of "bars left" once the last bar is over: what is open ends, then EOS

State = tuple[Any, ...]


class Grammar(ABC):
    """The language of decodable token sequences of one tokenizer.

    Specials and control tokens never reach a grammar: the decoder handles them.
    `step` may assume a token that `mask` allows; the decoder checks.
    """

    vocab_size: int
    feature_names: tuple[str, ...]

    @abstractmethod
    def start(self, num_bars: int) -> State:
        """The state before the first body token, with `num_bars` bars to come (UNLIMITED for no limit)."""

    @abstractmethod
    def step(self, state: State, token: int) -> State:
        """The state after an allowed body token."""

    @abstractmethod
    def mask(self, state: State) -> np.ndarray:
        """Which tokens may follow: bool [V], read-only, never all False. Includes EOS where the piece may end."""

    @abstractmethod
    def key(self, state: State) -> Hashable:
        """Equal for states that allow the same continuations up to the next bar line."""

    @abstractmethod
    def features(self, state: State) -> tuple[int, ...]:
        """The features, in the order of `feature_names`, of the token that led to this state."""


def frozen(mask: np.ndarray) -> np.ndarray:
    """The mask, made read-only, since it is shared by every state with the same key."""
    mask.flags.writeable = False
    return mask


def bars_after(left: int, crossed: int) -> int:
    """Bars left after crossing so many bar lines."""
    if left == UNLIMITED or not crossed:
        return left
    return left - crossed if left >= crossed else CLOSED


def check_num_bars(num_bars: int | None) -> int:
    """The number of bars as a grammar counts it.

    Raises:
        ValueError: below 1.
    """
    if num_bars is None:
        return UNLIMITED
    if num_bars < 1:
        raise ValueError(f"num_bars is {num_bars}; give 1 or more, or leave it out for a free length")
    return num_bars


class Decoder:
    """Runs a grammar over a batch of sequences that grow by one token at a time.

    Feed everything through `push`: BOS, controls, the prompt and the sampled tokens. Before a row's prompt begins,
    or after its EOS, push PAD: it changes nothing.

    Args:
        grammar: the language.
        batch: number of rows, B.
        first_body: the first id that is neither special nor control.
        num_bars: exactly this many bars, or None for a free length.
    """

    def __init__(self, grammar: Grammar, *, batch: int, first_body: int, num_bars: int | None = None) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}; give 1 or more")
        self._grammar = grammar
        self._first_body = first_body
        self._states: list[State] = [grammar.start(check_num_bars(num_bars))] * batch
        self._features: list[tuple[int, ...]] = [(0,) * len(grammar.feature_names)] * batch
        self._finished = np.zeros(batch, dtype=bool)
        self._only_pad = np.zeros(grammar.vocab_size, dtype=bool)
        self._only_pad[PAD] = True

    @property
    def finished(self) -> np.ndarray:
        """Which rows have had their EOS: bool [B]."""
        return self._finished

    def push(self, ids_b: Sequence[int] | np.ndarray) -> None:
        """Append one token to each row.

        Raises:
            ValueError: where a body token can't follow in its row, naming row and token.
        """
        grammar, nothing = self._grammar, (0,) * len(self._grammar.feature_names)
        for row, token in enumerate(np.asarray(ids_b).tolist()):
            if token < self._first_body:
                if token == EOS:
                    self._finished[row] = True
                self._features[row] = nothing
                continue
            state = self._states[row]
            if self._finished[row] or not grammar.mask(state)[token]:
                raise ValueError(
                    f"row {row}: token {token} can't follow here (allowed are the tokens of decoder.allowed()); "
                    "feed prompts as the tokenizer encodes them, from the start of a piece"
                )
            state = grammar.step(state, token)
            self._states[row] = state
            self._features[row] = grammar.features(state)

    def allowed(self) -> np.ndarray:
        """Which tokens may come next in each row: bool [B, V]; a finished row allows PAD alone."""
        masks = [
            self._only_pad if done else self._grammar.mask(state)
            for state, done in zip(self._states, self._finished, strict=True)
        ]
        return np.stack(masks)

    def features(self) -> dict[str, np.ndarray]:
        """The features of the token last pushed to each row: name -> int64 [B]; zeros for specials and controls."""
        columns = zip(*self._features, strict=True)
        return {name: np.array(column, dtype=np.int64) for name, column in zip(self._grammar.feature_names, columns, strict=True)}
