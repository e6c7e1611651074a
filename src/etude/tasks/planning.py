"""Plans of bars for pieces that continue a prompt: drawn first, with the prompt's own bars at their beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from symusic import Score
from torch import nn

from etude.models.symbolic.sampling import generate
from etude.music.form import Form
from etude.tasks.openings import Opening
from etude.tokens.form_grammar import MOST_BARS, FormGrammar
from etude.tokens.grammar import Decoder
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.plans import plan_of, with_plan, without_plan
from etude.tokens.remi_grammar import RemiGrammar
from etude.tokens.requests import form_asked
from etude.tokens.tokenizer import Tokenizer
from etude.wording import counted


def planned(
    model: nn.Module, tokenizer: MidiTokTokenizer, openings: Sequence[Opening], count: int, *, labels: Mapping[str, Any],
    num_bars: int | None, seed: int, device: torch.device, **cuts: Any,
) -> list[Opening]:  # fmt: skip
    """Returns `count` openings of each prompt, those of the first prompt first, each with a whole plan of its own.

    A plan begins with the letters of the prompt's bars; the model writes the rest, within the form that is asked for.

    Args:
        openings: of prompts, as `Opening.of` returns them.
        seed: the same seed gives the same plans.
        cuts: temperature, top_k, top_p and min_p; see `etude.models.symbolic.sampling.generate`.
    """
    found = []
    for opening in openings:
        assert opening.body is not None  # of a prompt
        given, bars = plan_of(opening.body, tokenizer.table), without_plan(opening.body, tokenizer.table)
        start = opening.ids[: len(opening.ids) - len(opening.body) + len(given)]
        sequences = generate(
            model, torch.tensor([start] * count, device=device), generator=torch.Generator().manual_seed(seed),
            decoder=plan_decoder(tokenizer, count, num_bars=num_bars, labels=labels, given=given),
            max_new_tokens=max(MOST_BARS, num_bars or 0) + 2, **cuts,
        )  # fmt: skip
        for sequence in sequences:
            plan = plan_of(np.array([token for token in sequence if token >= tokenizer.first_body]), tokenizer.table)
            body = with_plan(bars, tokenizer.table, plan=plan)
            controls = opening.ids[: len(opening.ids) - len(opening.body)]
            found.append(Opening([*controls, *body.tolist()], opening.prompt, body))
    return found


def plan_decoder(
    tokenizer: MidiTokTokenizer, batch: int, *, num_bars: int | None, labels: Mapping[str, Any], given: tuple[int, ...]
) -> Decoder:
    """Returns a decoder that ends with the Bar token behind a plan, which begins with the letters `given`."""
    base = RemiGrammar(tokenizer.table, program_changes=tokenizer.program_changes)
    form = form_asked(tokenizer, labels, num_bars)
    grammar = FormGrammar(base, tokenizer.table, form=form, given=given, only_plan=True)
    return Decoder(grammar, batch=batch, first_body=tokenizer.first_body, num_bars=num_bars)


def length_asked(tokenizer: Tokenizer, labels: Mapping[str, Any], num_bars: int | None) -> int | None:
    """Returns the length in bars that is asked for, by number or by a form. Raises: ValueError as `form_asked` does."""
    form = form_asked(tokenizer, labels, num_bars)
    return num_bars if form is None else form.num_bars


def form_of_prompt(tokenizer: Tokenizer, labels: Mapping[str, Any], prompt: Score, num_bars: int | None) -> list[str]:
    """One line for bars of a prompt that don't come back as the form that is asked for says; none if all do."""
    form = form_asked(tokenizer, labels, num_bars)
    if form is None or not isinstance(tokenizer, MidiTokTokenizer):
        return []
    letters = plan_of(tokenizer.encode_prompt(prompt), tokenizer.table)
    others = [bar for bar in range(len(letters)) if not _fits(form, letters, bar)]
    if not others:
        return []
    return [
        f"form={form.sections}: {counted(len(others), 'bar')} of the prompt, the first of them bar {others[0] + 1}, do not "
        "repeat what they would have to; the prompt stays as it is, and the form holds for what follows"
    ]


def _fits(form: Form, letters: Sequence[int], bar: int) -> bool:
    return bar >= form.num_bars or form.source(bar) == bar or letters[bar] == letters[form.source(bar)]
