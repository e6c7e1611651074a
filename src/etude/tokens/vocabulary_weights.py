"""Adapt the weights of a trained language model to a tokenizer with other labels, by copying the rows of equal tokens."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from etude.tokens.plans import FORM_TOKENS
from etude.tokens.tokenizer import Tokenizer


def rows_by_token(
    weights: Mapping[str, Tensor], theirs: Tokenizer, *, own: Mapping[str, Tensor], tokenizer: Tokenizer, path: Path
) -> dict[str, Tensor]:
    """Returns the weights with the rows of the vocabulary in the order of `tokenizer`; new tokens keep their initial rows.

    Args:
        weights: the weights of a checkpoint.
        theirs: the tokenizer of the checkpoint.
        own: the weights of the new model.
        tokenizer: the tokenizer of the new model.
        path: the file of the checkpoint, for messages.

    Weights of another width are returned as they are, which `load_state_dict` refuses.

    Raises:
        ValueError: the body tokens of the tokenizers differ, but for those of a plan, which may be new.
    """
    planless = [token for token in tokenizer.vocab[tokenizer.first_body :] if token not in FORM_TOKENS]
    if theirs.vocab[theirs.first_body :] not in (tokenizer.vocab[tokenizer.first_body :], planless):
        raise ValueError(
            f"weights={path}: its tokens ({type(theirs).__name__}, {len(theirs)}) are not those of this run "
            f"({type(tokenizer).__name__}, {len(tokenizer)}){_difference(theirs, tokenizer)}; give the data= and tokenizer= "
            "options of its run"
        )
    known = {token: place for place, token in enumerate(theirs.vocab)}
    pairs = [(place, known[token]) for place, token in enumerate(tokenizer.vocab) if token in known]
    here, there = (list(places) for places in zip(*pairs, strict=True))
    found = {}
    for name, value in own.items():
        found[name] = weights.get(name, value)
        if (
            value.ndim and name in weights and value.shape[0] == len(tokenizer)
            and weights[name].shape == (len(theirs), *value.shape[1:])
        ):  # fmt: skip
            found[name] = value.clone()
            found[name][here] = weights[name].to(value)[there]
    return found


def _difference(theirs: Tokenizer, mine: Tokenizer) -> str:
    """Returns the first three settings in which two tokenizers differ, such as ": scheme is REMI, here TSD"."""
    one, other = theirs.params, mine.params
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    told = ", ".join(f"{name} is {one.get(name)}, here {other.get(name)}" for name in names[:3])
    return f": {told}" if told and type(theirs) is type(mine) else ""
