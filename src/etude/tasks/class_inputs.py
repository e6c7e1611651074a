"""What a classifier reads, tokens of scores or mels of audio: how a batch goes into its networks, and what its checkpoint tells.

Shapes: b rows, t tokens, n documents or segments, s styles, m mel bands, f frames, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.tasks.encoder_weights import encoder_weights, mel_encoder_weights
from etude.tasks.mel_checkpoint import check_contract
from etude.tasks.pooling import each_document, mean_of_documents
from etude.tasks.token_nll import token_features
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import TIME_SIG
from etude.tokens.tokenizer import Tokenizer

METRE = "metre"  # the column that tokens of time signatures tell


class ClassInputs(Protocol):
    """How batches go into the networks of a classifier."""

    def network_options(self) -> dict[str, Any]:
        """Returns the arguments with which a network is built."""
        ...

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments of the networks' `hidden`."""
        ...

    def pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Returns the mean of the hidden states of each document or segment, [n, d]."""
        ...

    def each(self, batch: Batch, name: str) -> Tensor:
        """Returns the batch's entry `name`, such as `piece` or `label_genre`, once for each document or segment: [n]."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must tell, so that a classifier of the same data can be built."""
        ...

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raises ValueError if a checkpoint's `state` is that of other tokens or mels."""
        ...

    def encoder_weights(
        self, saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, path: Path
    ) -> dict[str, Tensor]:
        """Returns the weights of the encoder under `prefix`, taken from the network of another task's checkpoint."""
        ...


class TokenInputs:
    """Packed tokens of scores: `tokens`, `documents`, `positions`, `piece`, `feature_*` and `label_*`, all [b, t].

    Args:
        tokenizer: of the data.
        hide_metre: whether all tokens of time signatures are read as one and the same, so that they don't tell the metre; bars
            still do as far as their length tells it. None: if there is a head `metre` and the tokenizer has such tokens.
        heads: names of the heads.

    Raises: ValueError for hide_metre=True, or a head `metre`, with a tokenizer whose tokens of time signatures can't be hidden.
    """

    def __init__(self, tokenizer: Tokenizer, *, hide_metre: bool | None, heads: list[str]) -> None:
        self.tokenizer = tokenizer
        signatures: Any = tokenizer.table.of_kind[TIME_SIG] if isinstance(tokenizer, MidiTokTokenizer) else []
        merged = isinstance(tokenizer, MidiTokTokenizer) and tokenizer.params.get("bpe_vocab_size") is not None
        wanted = METRE in heads if hide_metre is None else hide_metre
        if wanted and merged:
            raise ValueError(
                "byte pairs can hold time signatures, which tell the head metre; set tokenizer=remi to hide them, or "
                "task.hide_metre=false to show them"
            )
        if hide_metre and not len(signatures):
            raise ValueError("task.hide_metre=true: this tokenizer has no tokens of time signatures; leave it out")
        self.shown_v = torch.arange(len(tokenizer))
        if wanted and len(signatures):
            self.shown_v[torch.as_tensor(signatures)] = int(signatures[0])
        self.hides = wanted and len(signatures) > 0

    def network_options(self) -> dict[str, Any]:
        """Returns {"vocab_size", "feature_sizes"}."""
        return {"vocab_size": len(self.tokenizer), "feature_sizes": dict(self.tokenizer.feature_sizes)}

    def shown(self, tokens: Tensor) -> Tensor:
        """Returns the tokens as the classifier reads them, of any shape."""
        return self.shown_v.to(tokens.device)[tokens] if self.hides else tokens

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See `ClassInputs`."""
        given = {"embeddings_btd": batch["embeddings"]} if "embeddings" in batch else {}
        where = {"documents_bt": batch["documents"], "positions_bt": batch["positions"], "features": token_features(batch)}
        return (self.shown(batch["tokens"]),), {**where, **given}

    def pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """See `ClassInputs`."""
        return mean_of_documents(hidden, batch, batch["documents"] >= 0)

    def each(self, batch: Batch, name: str) -> Tensor:
        """See `ClassInputs`."""
        return each_document(batch, name)

    def state(self) -> dict[str, Any]:
        """See `ClassInputs`."""
        return {"tokenizer": self.tokenizer.state_dict(), "tokenizer_fingerprint": self.tokenizer.fingerprint}

    def check(self, saved: Mapping[str, Any]) -> None:
        """See `ClassInputs`."""
        if saved.get("tokenizer_fingerprint") != self.tokenizer.fingerprint:
            raise ValueError(
                "the checkpoint was trained with another tokenizer; give the data= and tokenizer= options of its run"
            )

    def encoder_weights(
        self, saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, path: Path
    ) -> dict[str, Tensor]:
        """See `ClassInputs`."""
        return encoder_weights(saved, own=own, prefix=prefix, tokenizer=self.tokenizer, path=path)


class MelInputs:
    """Segments of mels: `mel` [s, b, m, f], `piece` and `label_*` [s, b]; a segment takes the place of a document.

    Args: contract: of the mels.
    """

    def __init__(self, contract: MelContract) -> None:
        self.contract = contract

    def network_options(self) -> dict[str, Any]:
        """Returns {"n_mels"}."""
        return {"n_mels": self.contract.n_mels}

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """See `ClassInputs`."""
        return (batch["mel"].flatten(0, 1),), {}

    def pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """See `ClassInputs`."""
        return hidden.mean(1)

    def each(self, batch: Batch, name: str) -> Tensor:
        """See `ClassInputs`."""
        entry_sb: Tensor = batch[name]
        return entry_sb.flatten()

    def state(self) -> dict[str, Any]:
        """See `ClassInputs`."""
        return {"contract": self.contract.to_dict()}

    def check(self, saved: Mapping[str, Any]) -> None:
        """See `ClassInputs`."""
        check_contract(saved, self.contract)

    def encoder_weights(
        self, saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, path: Path
    ) -> dict[str, Tensor]:
        """See `ClassInputs`."""
        return mel_encoder_weights(saved, own=own, prefix=prefix, contract=self.contract, path=path)


def class_inputs(
    tokenizer: Tokenizer | None, contract: MelContract | None, *, hide_metre: bool | None, heads: list[str]
) -> TokenInputs | MelInputs:
    """Returns how the classifier reads its data. Raises: ValueError for data that are neither, and as `TokenInputs`."""
    if tokenizer is not None:
        return TokenInputs(tokenizer, hide_metre=hide_metre, heads=heads)
    if contract is None:
        raise ValueError("task=classifier reads tokens of scores or mels of audio; choose data of one of them")
    if hide_metre is not None:
        raise ValueError(
            f"task.hide_metre={hide_metre} is about tokens of time signatures, which audio has none of; leave it out"
        )
    return MelInputs(contract)
