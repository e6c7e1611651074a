"""Held-out pieces of a run's own data, as the real music of a listening test."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from symusic import Score

from etude.core.audio_protocols import HoldsAudio
from etude.core.protocols import HoldsScores
from etude.run.parts import prepare_data
from etude.run.resuming import told_of_data
from etude.studio.pieces import MOST, Piece, constant, sounding_seconds
from etude.studio.recordings import HeldRecording, Recording
from etude.tokens.tokenizer import Tokenizer

SPLITS = ("test", "val")


def held_out(checkpoint: Path, data: Mapping[str, Any], tokenizer: Tokenizer | None, *, seed: int) -> list[Piece]:
    """Returns pieces of the validation and test data of a run, some of many drawn by `seed`; none if its data give no pieces.

    checkpoint: of the run, for messages. data: the configuration of its data module. tokenizer: of its model.

    Raises: ValueError or OSError in one line if the data can't be read.
    """
    with told_of_data(checkpoint), TemporaryDirectory() as folder:
        make: Callable[..., Any] | None = None if tokenizer is None else lambda *, genres: tokenizer
        module = prepare_data(OmegaConf.create(dict(data)), make, Path(folder))
        if isinstance(module, HoldsScores):
            return _scores(module, seed)
        return _recordings(module, seed) if isinstance(module, HoldsAudio) else []


def _scores(module: HoldsScores, seed: int) -> list[Piece]:
    rows = [(split, row) for split in SPLITS for row in module.view(split).table["row"].tolist()]
    tables = {split: module.manifest(split).to_pylist() for split in SPLITS}
    pieces = []
    for place in np.random.default_rng(seed).permutation(len(rows))[:MOST].tolist():
        split, row = rows[place]
        about, score = tables[split][row], module.score(split, row)
        facts = {key: str(about[key]) for key in ("file", "name", "sha256")}
        pieces.append(_piece(**facts, genre=about.get("genre"), score=score))
    return sorted(pieces, key=lambda piece: (piece.file, piece.name))


def _piece(*, file: str, name: str, sha256: str, genre: str | None, score: Score) -> Piece:
    return Piece(file, name, sha256, genre or None, constant(score), rate=None, seconds=sounding_seconds(score))


def _recordings(module: HoldsAudio, seed: int) -> list[Piece]:
    places = [(at, style, i) for at in SPLITS for style in module.styles for i in range(module.num_pieces(at, style))]
    chosen = np.random.default_rng(seed).permutation(len(places))[:MOST]
    return [_recording(module, *places[place]) for place in sorted(chosen.tolist())]


def _recording(module: HoldsAudio, split: str, style: str, index: int) -> Piece:
    about, contract = module.piece(split, style, index), module.contract

    def music() -> Recording:
        return HeldRecording(module.samples(split, style, index), contract.sample_rate)

    seconds = (about.stop - about.start) * contract.hop_length / contract.sample_rate
    return Piece(about.name, f"{style} {about.start}", about.key, style, music, rate=contract.sample_rate, seconds=seconds)
