"""Starts the encoder of one task from the network of another: language model, representation or classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.audio.mel import MelContract
from etude.core.checkpoint_files import unusable_checkpoint
from etude.tokens.tokenizer import Tokenizer
from etude.tokens.vocabulary_weights import rows_by_token

PREFIXES = ("encoder.", "model.networks.0.", "model.")  # of the network in the weights of the tasks, tried in this order


def holds_encoder(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds the encoder of a representation or a classifier of tokens."""
    return any(f"{prefix}embedding.weight" in saved["state_dict"] for prefix in PREFIXES[:2])


def encoder_weights(
    saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, tokenizer: Tokenizer, path: Path
) -> dict[str, Tensor]:
    """Returns the weights of the encoder under `prefix`, taken from the network of a checkpoint.

    Rows of the vocabulary go by token; feature embeddings and whatever else the other network lacks keep their own weights.

    Args:
        saved: the checkpoint. own: the weights of the new task. prefix: such as `encoder.`.
        tokenizer: of the new task. path: of the checkpoint, for messages.

    Raises: ValueError if the checkpoint holds no such network, or one of other tokens.
    """
    weights = saved["state_dict"]
    theirs = next((each for each in PREFIXES if f"{each}embedding.weight" in weights), None)
    if theirs is None or "tokenizer" not in saved["etude"]:
        raise ValueError(
            f"weights={path}: it holds no network of tokens; give a run of language_model, representation or classifier"
        )
    try:
        other = Tokenizer.from_state(saved["etude"]["tokenizer"])
    except Exception as error:  # a file may be malformed in any way
        raise unusable_checkpoint(path, error) from error
    network = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    given = {name.removeprefix(theirs): value for name, value in weights.items() if name.startswith(theirs)}
    if lacking := [name for name in network if name.startswith("blocks.") and name not in given]:
        raise ValueError(f"weights={path}: its network has no {lacking[0]}; give the model= options of its run")
    found = rows_by_token(given, other, own=network, tokenizer=tokenizer, path=path)
    return {f"{prefix}{name}": value for name, value in found.items()}


def mel_encoder_weights(
    saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, contract: MelContract, path: Path
) -> dict[str, Tensor]:
    """Returns the weights of the encoder of mels under `prefix`, taken from the network of a checkpoint, such as a grader's.

    Args: as `encoder_weights`; contract: of the new task's mels.

    Raises: ValueError if the checkpoint holds no such network, one of other sizes, or one of other mels.
    """
    weights = saved["state_dict"]
    network = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
    theirs = next((each for each in PREFIXES if all(f"{each}{name}" in weights for name in network)), None)
    if theirs is None or "contract" not in saved["etude"]:
        raise ValueError(
            f"weights={path}: it holds no such network of mels; give a run of task=grader or "
            "classifier on audio, or one of task=mel_representation with model=mel_patches"
        )
    found = MelContract(**saved["etude"]["contract"])
    if found != contract:
        raise ValueError(f"weights={path}: it reads other mels: {found.difference(contract)}; give the contract= of its run")
    if wrong := [name for name, value in network.items() if weights[f"{theirs}{name}"].shape != value.shape]:
        raise ValueError(f"weights={path}: its {wrong[0]} has another size; give the model= options of its run")
    return {f"{prefix}{name}": weights[f"{theirs}{name}"] for name in network}
