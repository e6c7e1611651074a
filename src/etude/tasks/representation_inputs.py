"""What a representation reads, tokens of scores or mels of audio: its views, its pooled vectors, and what its checkpoint tells.

Shapes: b rows, t tokens, n documents or segments, s styles, m mel bands, f frames, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from etude.audio.mel import MelContract
from etude.core.batch import Batch
from etude.core.factories import kind_of
from etude.models.mel.patches import PatchEncoder
from etude.models.symbolic.transformer import Transformer
from etude.objectives.mae import Mae
from etude.objectives.masked import Masked
from etude.tasks.encoder_weights import encoder_weights
from etude.tasks.mel_checkpoint import check_contract
from etude.tasks.mel_views import MelViews
from etude.tasks.pooling import each_document, mean_and_max_of_documents
from etude.tasks.score_views import ScoreViews
from etude.tasks.token_nll import token_features
from etude.tokens.tokenizer import Tokenizer

Options = Mapping[str, Any]
WIDTHS = 2  # a vector is mean and maximum of the hidden states
RANGES = {"semitones": (0, 24), "tempi": (0, 12), "voices": (0, 0.95), "hide": (0, 0.95), "stretch": (0, 0.5), "noise": (0, 1),
          "mix": (0, 0.95)}  # fmt: skip


def chosen_views(given: Options, usual: Options, *, of: str) -> dict[str, Any]:
    """Returns the settings of views: those that are given, else the usual ones.

    Raises: ValueError for a setting that views of this kind don't have, or a value out of range.
    """
    for name, value in given.items():
        if name not in usual:
            raise ValueError(f"task.{name}={value} is not of views of {of}, which have {', '.join(usual)}; leave it out")
        if name in RANGES and not RANGES[name][0] <= value <= RANGES[name][1]:
            raise ValueError(f"task.{name}={value} must lie in [{RANGES[name][0]}, {RANGES[name][1]}]")
    if (crop := given.get("crop")) is not None and (len(crop) != 2 or not 0.05 <= crop[0] <= crop[1] <= 1):
        raise ValueError(
            f"task.crop={list(crop)} must be [smallest, largest] share of a piece, within [0.05, 1]; [1, 1] shows all"
        )
    return {**usual, **given}


class ScoreInputs:
    """Packed tokens: `tokens`, `documents`, `positions`, `piece` and `feature_*`, all [b, t]; vectors are of documents.

    Args:
        tokenizer: of the data. given: settings of views, see `ScoreViews` and `Representation`. with_views: false for none.

    Raises: ValueError as `chosen_views` and `ScoreViews`.
    """

    example_axis: ClassVar[int] = 0
    usual: ClassVar[Options] = {
        "semitones": 6, "tempi": 2, "note_values": True, "voices": 0.2, "crop": (0.15, 0.4), "hide": 0.0,
    }  # fmt: skip

    def __init__(self, tokenizer: Tokenizer, given: Options, *, with_views: bool) -> None:
        self.tokenizer = tokenizer
        settings = chosen_views(given, self.usual, of="scores")
        self.crop, self.hide = settings.pop("crop"), settings.pop("hide")
        self.views = ScoreViews(tokenizer, **settings) if with_views else None

    def network(self, model: Any) -> nn.Module:
        """Builds the encoder. Raises: ValueError if it is no Transformer of tokens."""
        found: nn.Module = model(vocab_size=len(self.tokenizer), feature_sizes=dict(self.tokenizer.feature_sizes))
        if not isinstance(found, Transformer):
            raise ValueError(f"task=representation trains a Transformer, not {type(found).__name__}; set model=tiny")
        return found

    def objective(self, build: Any, encoder: nn.Module) -> nn.Module:
        """Builds the objective. Raises: ValueError for one of mels."""
        if kind_of(build) is Mae:
            raise ValueError(
                "objective=mae hides patches of mels; scores have objective=masked, and mels task=mel_representation"
            )
        found: nn.Module = build(dim=WIDTHS * encoder.dim)  # type: ignore[operator]
        return found

    def view(self, batch: Batch, least: float, most: float) -> Batch:
        """Returns a view of each document; `hidden` in it tells which tokens a mask stands for."""
        assert self.views is not None
        view = self.views.view(batch, least=least, most=most)
        return {**view, "hidden": torch.rand(view["tokens"].shape, device=view["tokens"].device) < self.hide}

    def states(self, encoder: nn.Module, batch: Batch, mask: Tensor | None) -> Tensor:
        """Returns the last hidden states, [b, t, d]; `mask` [d] stands for the embeddings of tokens that are hidden."""
        assert isinstance(encoder, Transformer)
        embeddings = batch["embeddings"] if "embeddings" in batch else encoder.embed(batch["tokens"])
        if "hidden" in batch and mask is not None:
            embeddings = torch.where(batch["hidden"][..., None], mask.to(embeddings.dtype), embeddings)
        return encoder.hidden(
            batch["tokens"], documents_bt=batch["documents"], positions_bt=batch["positions"], features=token_features(batch),
            embeddings_btd=embeddings,
        )  # fmt: skip

    def pooled(self, encoder: nn.Module, batch: Batch, mask: Tensor | None) -> Tensor:
        """Returns mean and maximum of the hidden states of each document over what the batch shows of it, [n, 2 d]."""
        return mean_and_max_of_documents(self.states(encoder, batch, mask), batch)

    def each(self, batch: Batch, name: str) -> Tensor:
        """Returns the batch's entry `name` once for each document: [n]."""
        return each_document(batch, name)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must tell, so that a task for the same tokens can be built."""
        return {"tokenizer": self.tokenizer.state_dict(), "tokenizer_fingerprint": self.tokenizer.fingerprint}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raises ValueError if a checkpoint is of other tokens, or of mels."""
        if saved.get("tokenizer_fingerprint") != self.tokenizer.fingerprint:
            raise ValueError("the checkpoint was trained with another tokenizer; give the options of its run")

    def weights(self, saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
        """Returns the weights of the encoder under `prefix`, from the checkpoint of another task."""
        return encoder_weights(saved, own=own, prefix=prefix, tokenizer=self.tokenizer, path=path)


class MelInputs:
    """Segments of normalised mels: `mel` [s, b, m, f], `piece` [s, b]; vectors are of segments.

    Args:
        contract: of the data. given: settings of views, see `MelViews` and `Representation`. with_views: false for none.

    Raises: ValueError as `chosen_views`.
    """

    example_axis: ClassVar[int] = 1
    usual: ClassVar[Options] = {"semitones": 3, "stretch": 0.2, "noise": 0.1, "mix": 0.2, "crop": (0.5, 1.0)}

    def __init__(self, contract: MelContract, given: Options, *, with_views: bool) -> None:
        self.contract = contract
        settings = chosen_views(given, self.usual, of="mels")
        self.crop = settings.pop("crop")
        self.views = MelViews(contract, **settings) if with_views else None

    def network(self, model: Any) -> nn.Module:
        """Builds the encoder. Raises: ValueError if it has no patches."""
        found: nn.Module = model(n_mels=self.contract.n_mels)
        if not isinstance(found, PatchEncoder):
            raise ValueError(f"task=mel_representation trains a PatchEncoder, not {type(found).__name__}; set model=mel_patches")
        return found

    def objective(self, build: Any, encoder: nn.Module) -> nn.Module:
        """Builds the objective. Raises: ValueError for one of tokens."""
        assert isinstance(encoder, PatchEncoder)
        kind = kind_of(build)
        if kind is Masked:
            raise ValueError("objective=masked hides tokens of scores; mels have objective=mae")
        more = {"values": encoder.patch_bands * encoder.patch_frames, "rows": encoder.rows} if kind is Mae else {}
        found: nn.Module = build(dim=encoder.dim if kind is Mae else WIDTHS * encoder.dim, **more)
        return found

    def view(self, batch: Batch, least: float, most: float) -> Batch:
        """Returns a view of each segment."""
        assert self.views is not None
        return {**batch, "mel": self.views.view(batch["mel"].flatten(0, 1), least=least, most=most)[None]}

    def patches(self, encoder: nn.Module, batch: Batch) -> Tensor:
        """Returns the values of the patches of all segments, [n, p, e]."""
        assert isinstance(encoder, PatchEncoder)
        return encoder.patches(batch["mel"].flatten(0, 1))

    def pooled(self, encoder: nn.Module, batch: Batch, mask: Tensor | None) -> Tensor:
        """Returns mean and maximum of the hidden states of each segment, [n, 2 d]; `mask` is not used."""
        assert isinstance(encoder, PatchEncoder)
        hidden = encoder.hidden(batch["mel"].flatten(0, 1)).float()
        return torch.cat((hidden.mean(1), hidden.amax(1)), dim=1)

    def each(self, batch: Batch, name: str) -> Tensor:
        """Returns the batch's entry `name` for each segment: [n]."""
        entry_sb: Tensor = batch[name]
        return entry_sb.flatten()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must tell, so that a task for the same mels can be built."""
        return {"contract": self.contract.to_dict()}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raises ValueError if a checkpoint is of other mels, or of tokens."""
        check_contract(saved, self.contract)

    def weights(self, saved: Mapping[str, Any], *, own: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
        """Returns the weights of the encoder under `prefix`, from the checkpoint of another run of this task."""
        found = {name: value for name, value in saved["state_dict"].items() if name.startswith("encoder.")}
        given = {f"{prefix}{name.removeprefix('encoder.')}": value for name, value in found.items()}
        mine = {name: value for name, value in own.items() if name.startswith(prefix)}
        if given.keys() != mine.keys() or any(given[name].shape != mine[name].shape for name in mine):
            raise ValueError(f"weights={path}: it holds no encoder of this shape; give the model= options of its run")
        self.check(saved["etude"])
        return given
