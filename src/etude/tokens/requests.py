"""Checks the labels that are asked of samples: whether the model was trained with them, and how exactly tokens express them."""

from collections.abc import Mapping, Sequence

from etude.music.form import Form, parse_form
from etude.tokens.tokenizer import FAMILIES, FORM, METRES, SPECIALS, WISHES, Tokenizer, program_family

PREFIXES = {
    "genre": "genre", "key": "key", "metre": "metre", "tempo": "tempo_bpm", "bars": "num_bars", "instrument": "programs",
}  # fmt: skip
Trained = Mapping[str, Sequence[str]]


def control_values(tokenizer: Tokenizer, controls: Sequence[int] | None = None) -> dict[str, list[str]]:
    """Returns each label with the values of its control tokens, in the order of the vocabulary.

    Args:
        controls: ids of control tokens, others are left out; None takes all that the tokenizer has.
    """
    found: dict[str, list[str]] = {label: [] for label in PREFIXES.values()}
    ids = range(len(SPECIALS), tokenizer.first_body) if controls is None else sorted(set(controls))
    for token in ids:
        prefix, _, value = tokenizer.vocab[token].partition(":")
        found[PREFIXES[prefix]].append(value)
    return found


def check_trained(labels: Mapping[str, object], trained: Trained | None) -> None:
    """Refuses labels that no training piece had: the model would ignore them.

    Args:
        labels: what is asked for. trained: the values of each label in training; None where they are not known.

    Raises:
        ValueError: naming the label and those that the model knows.
    """
    known = [label for label, values in (trained or {}).items() if values]
    for label, value in labels.items():
        if trained is not None and value is not None and label not in (*known, *WISHES, *FORM):
            raise ValueError(
                f"{label}={value}: this model was trained without that label, so it can't be asked for it; it knows "
                f"{', '.join(known) or 'no labels'}; leave {label} out, or train with data.controls=[{label}]"
            )


def form_asked(tokenizer: Tokenizer, labels: Mapping[str, object], num_bars: int | None) -> Form | None:
    """Returns the form among labels, None where none is asked for.

    Raises:
        ValueError: one that can't be read or has another length than `num_bars`, or a tokenizer without a plan.
    """
    text, bars = labels.get("form"), labels.get("form_bars")
    if text is None:
        if bars is not None:
            raise ValueError(f"form_bars={bars} tells the bars of a section of a form; give form=AABA, too, or leave it out")
        return None
    if not tokenizer.can_plan:
        raise ValueError(
            f"form={text}: this model was trained without a plan of its bars; train one with tokenizer=remi tokenizer.form=true, "
            "or leave form out"
        )
    return parse_form(text, bars=bars, num_bars=num_bars)


def request_notes(tokenizer: Tokenizer, labels: Mapping[str, object], trained: Trained | None) -> list[str]:
    """Returns one line for each label that tokens express only roughly, and for each value that no training piece has.

    Args: as in `check_trained`.
    """
    notes = []
    for label, value in labels.items():
        if value is None or label in (*WISHES, *FORM):
            continue
        told = [tokenizer.vocab[token].partition(":")[2] for token in tokenizer.controls({label: value})]
        rough = _rough(label, value, told)
        if rough:
            notes.append(rough)
        met = None if trained is None else trained.get(label, ())
        if met is not None and (unknown := [name for name in told if name not in met]):
            shown = ", ".join(met[:8]) + (f" and {len(met) - 8} more" if len(met) > 8 else "")
            notes.append(
                f"{label}={_shown(value)}: no training piece has {', '.join(unknown)}, so the model has not learnt what it "
                f"means; it knows {shown}"
            )
    return notes


def _rough(label: str, value: object, told: Sequence[str]) -> str | None:
    if label == "metre" and value not in METRES:
        return f"metre={value} has no token of its own: the model is asked for any metre that has none"
    if label == "tempo_bpm" and isinstance(value, int | float) and float(told[0]) != value:
        return f"tempo_bpm={value}: the model is asked for the nearest tempo that has a token, {told[0]}"
    if label == "programs" and isinstance(value, Sequence):
        families = {FAMILIES[program_family(int(program))] for program in value}
        return f"programs={_shown(value)}: the model is asked by family: {', '.join(sorted(families))}"
    return None


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
