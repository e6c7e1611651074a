"""The pieces of one split as one tokenizer sees them: a memory-mapped table from which training reads.

Kept beside the manifest, one folder for each tokenizer: `{split}.npy`, `view.json` and their checksums.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etude.data.cache.intact import Damaged, sealed_json, unsealed_json, write_sums
from etude.data.cache.store import Store, named, sync_folder, write_aside
from etude.data.randomness import permute
from etude.data.scores.manifest import SPLITS, piece_keys, read_quarantine, write_quarantine
from etude.data.scores.tokens import tokenise, tokens_folder
from etude.tokens.tokenizer import Tokenizer

COLUMNS = {"num_bars": "bars"}  # labels of `Tokenizer.controls` that the manifest calls otherwise
BPE_PIECES = 2000  # enough to learn frequent pairs from


@dataclass(frozen=True)
class View:
    """One split: `table` has a row for each piece, `store` its base ids.

    table: structured array [n]; row: in the split's manifest; start, length: in the store's items; shift: lowest and
        highest transposition; controls: ids, padded with -1.
    """

    store: Store
    table: np.ndarray
    num_tokens: int

    def __len__(self) -> int:
        return len(self.table)

    def check(self) -> None:
        """Compares the pieces' ids with their checksums, at about 1 GB/s.

        Raises: Damaged, with the token store to remove.
        """
        index = self.store.index
        rows = np.searchsorted(index["start"], self.table["start"], side="right") - 1  # of several, the one that holds items
        entries = index[rows]
        names = {"start": "start", "length": "length", "extra": "shift"}
        if not all(np.array_equal(entries[mine], self.table[name]) for mine, name in names.items()):
            raise Damaged(self.store.path / "index", remove=self.store.path, why="its rows are not those of the view")
        self.store.check(rows)

    def body(self, index: int) -> np.ndarray:
        """Base ids of piece `index`: a view of the mapped file, nothing is copied."""
        entry = self.table[index]
        start = int(entry["start"])
        return self.store.items[start : start + int(entry["length"])]


def view_folder(dataset: Path, tokenizer: Tokenizer, *, controls: Sequence[str], cache_dir: Path) -> Path:
    """Where the view of `tokenizer` with the labels `controls` is kept, below the folder of the dataset."""
    return dataset / "-".join([tokens_folder(tokenizer, cache_dir).name, *controls])


def build_view(view: Path, tokenizer: Tokenizer, *, controls: Sequence[str], cache_dir: Path, num_workers: int) -> None:
    """Writes the `view_folder`, encoding only what the token store lacks; where it is there already, nothing is done.

    controls: the labels that stand in front of each piece.
    Raises: ValueError where the tokenizer can hold none of the pieces.
    """
    if view.exists():
        return
    folder = view.parent
    manifest = pq.read_table(folder / "manifest.parquet")
    store, refused = tokenise(tokenizer, piece_keys(manifest), cache_dir=cache_dir, num_workers=num_workers)
    if len(refused) == len(manifest):
        raise ValueError(f"the tokenizer can hold none of the {len(manifest)} pieces; the first: {refused[0]}")
    rows = store.rows(piece_keys(manifest))
    ids = [tokenizer.controls(labels) for labels in labels_of(manifest, controls)]
    splits = np.array(manifest["split"].to_pylist())
    aside = view.with_name(f"{view.name}.{os.getpid()}.aside")
    try:
        aside.mkdir(parents=True)
        sizes = {split: _write(aside / f"{split}.npy", splits == split, rows, store, ids) for split in SPLITS}
        (aside / "view.json").write_text(json.dumps({"tokens": sizes, "pieces": len(manifest), "refused": len(refused)}))
        files, names = manifest["file"].to_pylist(), manifest["name"].to_pylist()
        unread = read_quarantine(folder / "quarantine.tsv")
        write_quarantine(aside / "quarantine.tsv", unread + [(files[i], names[i], reason) for i, reason in refused.items()])
        write_sums(aside)
        aside.replace(view)
        sync_folder(folder)
    except OSError as error:
        raise named(error, view) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def labels_of(manifest: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """The labels `names` of each piece as `Tokenizer.controls` takes them."""
    columns = [manifest[COLUMNS.get(name, name)].to_pylist() for name in names]
    return [{name: column[row] for name, column in zip(names, columns, strict=True)} for row in range(len(manifest))]


def _write(path: Path, chosen: np.ndarray, rows: np.ndarray, store: Store, controls: list[list[int]]) -> int:
    """Writes the table of one split; returns how many body tokens it has."""
    entries = store.index[rows]
    kept = np.flatnonzero(chosen & (entries["length"] > 0))
    width = max((len(ids) for ids in controls), default=0)
    fields = [("row", "<i8"), ("start", "<u8"), ("length", "<u4"), ("shift", "<i2", 2), ("controls", "<i4", width)]
    table = np.zeros(len(kept), np.dtype(fields))
    table["row"] = np.cumsum(chosen)[kept] - 1
    table["start"], table["length"], table["shift"] = (entries[name][kept] for name in ("start", "length", "extra"))
    for at, piece in enumerate(kept.tolist()):
        table["controls"][at] = controls[piece] + [-1] * (width - len(controls[piece]))
    with path.open("wb") as file:
        np.save(file, table)
        file.flush()
        os.fsync(file.fileno())
    return int(table["length"].sum())


def open_view(view: Path, split: str, tokenizer: Tokenizer, cache_dir: Path) -> View:
    """Opens one split, whose folder was compared with its checksums.

    Raises: Damaged where the tokens are not there or not what was written.
    """
    table = np.asarray(np.load(view / f"{split}.npy", mmap_mode="r"))  # a plain view of the map: indexing is twice as fast
    sizes = json.loads((view / "view.json").read_text())["tokens"]
    try:
        found = View(Store(tokens_folder(tokenizer, cache_dir) / "tokens"), table, sizes[split])
    except FileNotFoundError as error:
        raise Damaged(view / "view.json", remove=view, why="its tokens are not there") from error
    if len(table):
        found.check()
    return found


def with_byte_pairs(tokenizer: Tokenizer, view: View, path: Path) -> Tokenizer:
    """`tokenizer` with its byte pairs learnt from (a sample of) the training pieces, once: they are kept in the file
    `path`.

    A tokenizer that wants none, or comes with its own, is given back as it is.
    """
    if tokenizer.params.get("bpe_vocab_size") is None or len(tokenizer) != tokenizer.base_size or len(view) == 0:
        return tokenizer
    if not path.exists():
        chosen = permute(np.arange(min(len(view), BPE_PIECES)), size=len(view), seed=0, number=0)
        tokenizer.train_bpe([np.array(view.body(piece), np.int32) for piece in chosen.tolist()])  # type: ignore[attr-defined]
        write_aside(path, sealed_json(tokenizer.state_dict()))
    return Tokenizer.from_state(unsealed_json(path))
