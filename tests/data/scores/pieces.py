"""Small pieces, folders of them and views of them for the tests of the data layer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.data.cache.store import Store, Writer, key_of
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.data.scores.view import View
from etude.tokens.satb import SatbGrid

TPQ = 480


def melody(seed: int, *, notes: int = 40, low: int = 60, program: int = 0) -> Score:
    """A random walk of eighths and quarters; another seed is another tune."""
    rng = np.random.default_rng(seed)
    score = Score(TPQ)
    score.tempos.append(Tempo(0, qpm=100))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    track, at, pitch = Track(name="tune", program=program), 0, low
    for _ in range(notes):
        length = TPQ // int(rng.integers(1, 4))
        pitch = int(np.clip(pitch + rng.integers(-4, 5), low - 6, low + 12))
        track.notes.append(Note(at, length, pitch, 80))
        at += length
    score.tracks.append(track)
    return score


def quartet(seed: int, *, steps: int = 96) -> Score:
    """Four voices of random quarters, as the SATB grid holds them."""
    rng = np.random.default_rng(seed)
    score = Score(TPQ)
    score.tempos.append(Tempo(0, qpm=90))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    for voice, centre in enumerate((72, 65, 58, 48)):
        track = Track(name=f"voice {voice}", program=52)
        for start in range(0, steps, 4):
            length = min(4, steps - start)
            track.notes.append(Note(start * 120, length * 120, int(centre + rng.integers(-3, 4)), 80))
        score.tracks.append(track)
    return score


def write_folder(root: Path, *, pieces: int = 12, genres: tuple[str, ...] = ("folk", "jazz")) -> Path:
    """A folder of quartets as MIDI files in genre subfolders."""
    for number in range(pieces):
        folder = root / genres[number % len(genres)]
        folder.mkdir(parents=True, exist_ok=True)
        quartet(number, steps=64 + 16 * (number % 5)).dump_midi(folder / f"piece{number:03d}.mid")
    return root


def view_of(folder: Path, bodies: list[np.ndarray], *, controls: int = 3, tokenizer: SatbGrid) -> View:
    """A view of given body ids, each with `controls` controls, that any transposition of -2..2 keeps in range."""
    with Writer(folder, dtype=np.uint16) as writer:
        for number, body in enumerate(bodies):
            writer.add(key_of(number.to_bytes(16, "little")), body)
    store = Store(folder)
    fields = [("row", "<i8"), ("start", "<u8"), ("length", "<u4"), ("shift", "<i2", 2), ("controls", "<i4", controls)]
    table = np.zeros(len(bodies), np.dtype(fields))
    table["row"], table["start"], table["length"] = np.arange(len(bodies)), store.index["start"], store.index["length"]
    table["shift"] = (-2, 2)
    table["controls"] = tokenizer.first_body - 1 - np.arange(controls)
    return View(store, table, int(table["length"].sum()))


def bodies_of(lengths: list[int], tokenizer: SatbGrid) -> Iterator[np.ndarray]:
    """Random grid ids of so many frames each."""
    rng = np.random.default_rng(0)
    for frames in lengths:
        yield tokenizer.encode_frames(rng.integers(50, 70, (frames, 4)))


SMALL: dict[str, Any] = {"max_len": 400, "batch_size": 2, "batches_per_epoch": 6, "prepare_workers": 1, "seed": 5}


def module(root: Path, cache: Path, **changes: Any) -> MusicDataModule:
    """A data module of the scores in `root`."""
    options = {"corpus": Folder(root=str(root)), "tokenizer": SatbGrid, "cache_dir": str(cache), "transpose": [-3, 3]}
    return MusicDataModule(**{**options, **SMALL, **changes})
