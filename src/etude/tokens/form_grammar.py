"""REMI behind a plan of its bars: the plan is written first, then each bar begins with its letter, and the piece has its bars."""

from collections.abc import Hashable
from typing import NamedTuple, cast

import numpy as np

from etude.music.form import LETTERS, NONE, Form
from etude.tokens.grammar import EOS, UNLIMITED, Grammar, State, frozen
from etude.tokens.miditok_vocabulary import BAR, FORM, TokenTable

MOST_BARS = 256  # of a plan whose length is left to the model


class Planned(NamedTuple):
    """What has been written.

    inner: state of the grammar of the bars. plan: the letters so far, or all of them once a bar has begun. bar: bars begun.
    num_bars: the length that is asked for, or UNLIMITED. due: a bar has begun and its letter is missing.
    marked: the last token is a letter.
    """

    inner: State
    plan: tuple[int, ...] = ()
    bar: int = 0
    num_bars: int = UNLIMITED
    due: bool = False
    marked: bool = False


class FormGrammar(Grammar):
    """A plan, then the bars of another grammar of REMI, which sees no Form tokens.

    In a plan a new letter is the next one that no bar has. With a form, a bar of a section that comes back has the letter of the
    bar that it repeats; one of a section that is new has a letter that no other section has, so that sections may repeat
    themselves within. A plan of 52 letters goes on with those, or with `NONE`.

    Args:
        base: of the bars.
        form: what is asked for; None leaves the plan free.
        given: the plan of a prompt, which comes first, whatever is asked for.
        only_plan: whether the sequence ends with the Bar token behind the plan.
    """

    def __init__(
        self, base: Grammar, table: TokenTable, *, form: Form | None = None, given: tuple[int, ...] = (), only_plan: bool = False
    ) -> None:
        self._base, self._table, self._form, self._given, self._only_plan = base, table, form, given, only_plan
        self.vocab_size, self.feature_names = base.vocab_size, base.feature_names
        self._tokens = table.of_kind[FORM]
        self._kind, self._number = table.kind.tolist(), table.number.tolist()
        self._of_letter = [self._only(token) for token in self._tokens.tolist()]
        self._bar, self._end = self._only(int(table.of_kind[BAR][0])), self._only(EOS)

    def _only(self, token: int) -> np.ndarray:
        mask = np.zeros(self._base.vocab_size, dtype=bool)
        mask[token] = True
        return frozen(mask)

    def start(self, num_bars: int) -> State:
        return Planned(self._base.start(num_bars), num_bars=num_bars)

    def step(self, state: State, token: int) -> State:
        now, kind = cast(Planned, state), self._kind[token]
        if kind == FORM:
            if now.bar == 0:
                return now._replace(plan=(*now.plan, self._number[token]), marked=True)
            return now._replace(due=False, marked=True)
        begins = kind == BAR
        if begins and now.bar == 0:
            now = now._replace(inner=self._base.start(len(now.plan)))
        bar = now.bar + begins
        return now._replace(inner=self._base.step(now.inner, token), bar=bar, due=begins and bar <= len(now.plan), marked=False)

    def mask(self, state: State) -> np.ndarray:
        now = cast(Planned, state)
        if now.bar == 0:
            return self._planning(now)
        if self._only_plan:
            return self._end
        return self._of_letter[now.plan[now.bar - 1]] if now.due else self._base.mask(now.inner)

    def _planning(self, now: Planned) -> np.ndarray:
        """What may follow in a plan."""
        place = len(now.plan)
        if place < len(self._given):
            return self._of_letter[self._given[place]]
        whole = self._form.num_bars if self._form is not None else now.num_bars
        if place >= (MOST_BARS if whole == UNLIMITED else whole):
            return self._bar
        mask = self._bar.copy() if whole == UNLIMITED and place else np.zeros(self.vocab_size, dtype=bool)
        mask[self._tokens[self._letters(now.plan)]] = True
        return frozen(mask)

    def _letters(self, plan: tuple[int, ...]) -> list[int]:
        """The letters that the next bar of a plan may have."""
        used, place = max(plan, default=0), len(plan)
        new = [used + 1] if used < len(LETTERS) else []
        if self._form is None:
            return [NONE, *range(1, used + 1), *new]
        source, start = self._form.source(place), self._form.start(place)
        if source < place:
            return [plan[source]]
        before = set(plan[:start])
        return sorted({letter for letter in plan[start:] if letter not in before and letter != NONE}) + new or [NONE]

    def key(self, state: State) -> Hashable:
        now = cast(Planned, state)
        ahead = now.plan if now.bar == 0 else now.plan[now.bar - 1 : now.bar] if now.due else ()
        return (self._base.key(now.inner), ahead, now.bar == 0, now.due)

    def features(self, state: State) -> tuple[int, ...]:
        now = cast(Planned, state)
        return (1, *[0] * (len(self.feature_names) - 1)) if now.marked else self._base.features(now.inner)
