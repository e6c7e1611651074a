"""Views: the tokenised pieces of a split as memory-mapped tables, from which training reads.

They are stored beside the manifest in one folder for each tokenizer: `{split}.npy`, `view.json` and their checksums.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etude.data.cache.intact import Damaged, sealed_json, unsealed_json, write_sums
from etude.data.cache.store import Store, named, write_aside
from etude.data.randomness import permute
from etude.data.scores.manifest import SPLITS, piece_keys, read_quarantine, write_quarantine
from etude.data.scores.tokens import tokenise, tokens_folder
from etude.durable import replacing
from etude.tokens.tokenizer import Tokenizer
from etude.wording import counted

COLUMNS = {"num_bars": "bars"}  # label of `Tokenizer.controls` -> column of the manifest, where the names differ
BPE_PIECES = 2000  # pieces from which byte pairs are learnt, at most


@dataclass(frozen=True)
class View:
    """The tokenised pieces of one split.

    store: the base ids of the pieces.
    table: structured array [n] with a row for each piece. row: its row in the split's manifest. start, length: its items in
        the store. shift: its lowest and highest transposition. controls: its control ids, padded with -1.
    num_tokens: number of base ids of all pieces.
    """

    store: Store
    table: np.ndarray
    num_tokens: int

    def __len__(self) -> int:
        return len(self.table)

    def check(self, folder: Path) -> None:
        """Verifies the checksums of the pieces' ids, at about 1 GB/s.

        folder: that of the view.
        Raises: Damaged, which names what to remove: the token store, or `folder` if the store is whole and was only rebuilt in
            another order, as another dataset that shares it may do.
        """
        index = self.store.index
        rows = (
            np.searchsorted(index["start"], self.table["start"], side="right") - 1
        )  # of several records with the same start, the one that is not empty
        entries = index[rows]
        names = {"start": "start", "length": "length", "extra": "shift"}
        if not all(np.array_equal(entries[mine], self.table[name]) for mine, name in names.items()):
            self.store.check()
            raise Damaged(folder / "view.json", remove=folder, why="its token store was rebuilt in another order")
        self.store.check(rows)

    def body(self, index: int) -> np.ndarray:
        """Returns the base ids of piece `index` as a view of the memory-mapped file."""
        entry = self.table[index]
        start = int(entry["start"])
        return self.store.items[start : start + int(entry["length"])]


def view_folder(dataset: Path, tokenizer: Tokenizer, *, controls: Sequence[str], cache_dir: Path) -> Path:
    """The folder, in that of the dataset, of the view of `tokenizer` with the labels `controls`."""
    return dataset / "-".join([tokens_folder(tokenizer, cache_dir).name, *controls])


def build_view(view: Path, tokenizer: Tokenizer, *, controls: Sequence[str], cache_dir: Path, num_workers: int) -> None:
    """Writes the `view_folder` unless it exists; encodes only pieces that are missing in the token store.

    controls: the labels whose control tokens precede each piece.
    Raises: ValueError if the tokenizer can represent none of the pieces.
    """
    if view.exists():
        return
    folder = view.parent
    manifest = pq.read_table(folder / "manifest.parquet")
    store, refused = tokenise(tokenizer, piece_keys(manifest), cache_dir=cache_dir, num_workers=num_workers)
    if len(refused) == len(manifest):
        raise ValueError(f"the tokenizer can hold none of {counted(len(manifest), 'piece')}; the first: {refused[0]}")
    rows = store.rows(piece_keys(manifest))
    ids = [tokenizer.controls(labels) for labels in labels_of(manifest, controls)]
    splits = np.array(manifest["split"].to_pylist())
    try:
        with replacing(view) as aside:
            aside.mkdir()
            sizes = {split: _write(aside / f"{split}.npy", splits == split, rows, store, ids) for split in SPLITS}
            (aside / "view.json").write_text(json.dumps({"tokens": sizes, "pieces": len(manifest), "refused": len(refused)}))
            files, names = manifest["file"].to_pylist(), manifest["name"].to_pylist()
            unread = read_quarantine(folder / "quarantine.tsv")
            write_quarantine(aside / "quarantine.tsv", unread + [(files[i], names[i], reason) for i, reason in refused.items()])
            write_sums(aside)
    except OSError as error:
        raise named(error, view) from error


def labels_of(manifest: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the labels `names` of each piece, as `Tokenizer.controls` takes them."""
    columns = [manifest[COLUMNS.get(name, name)].to_pylist() for name in names]
    return [{name: column[row] for name, column in zip(names, columns, strict=True)} for row in range(len(manifest))]


def _write(path: Path, chosen: np.ndarray, rows: np.ndarray, store: Store, controls: list[list[int]]) -> int:
    """Writes the table of one split; returns its number of body tokens."""
    entries = store.index[rows]
    kept = np.flatnonzero(chosen & (entries["length"] > 0))
    width = max((len(ids) for ids in controls), default=0)
    fields = [("row", "<i8"), ("start", "<u8"), ("length", "<u4"), ("shift", "<i2", 2), ("controls", "<i4", width)]
    table = np.zeros(len(kept), np.dtype(fields))
    table["row"] = np.cumsum(chosen)[kept] - 1
    table["start"], table["length"], table["shift"] = (entries[name][kept] for name in ("start", "length", "extra"))
    for at, piece in enumerate(kept.tolist()):
        table["controls"][at] = controls[piece] + [-1] * (width - len(controls[piece]))
    np.save(path, table)
    return int(table["length"].sum())


def open_view(view: Path, split: str, tokenizer: Tokenizer, cache_dir: Path) -> View:
    """Opens the view of one split; the checksums of its folder must have been verified.

    Raises: Damaged if the tokens are missing or their checksums differ.
    """
    table = np.asarray(np.load(view / f"{split}.npy", mmap_mode="r"))  # indexing a plain array is twice as fast as a memmap
    sizes = json.loads((view / "view.json").read_text())["tokens"]
    try:
        found = View(Store(tokens_folder(tokenizer, cache_dir) / "tokens"), table, sizes[split])
    except FileNotFoundError as error:
        raise Damaged(view / "view.json", remove=view, why="its tokens are missing") from error
    if len(table):
        found.check(view)
    return found


def with_byte_pairs(tokenizer: Tokenizer, view: View, path: Path) -> Tokenizer:
    """Returns `tokenizer` with byte pairs learnt from (a sample of) the training pieces, which are cached in the file `path`.

    A tokenizer without byte pairs, or that already has learnt ones, is returned unchanged.
    """
    if tokenizer.params.get("bpe_vocab_size") is None or len(tokenizer) != tokenizer.base_size or len(view) == 0:
        return tokenizer
    if not path.exists():
        chosen = permute(np.arange(min(len(view), BPE_PIECES)), size=len(view), seed=0, number=0)
        tokenizer.train_bpe([np.array(view.body(piece), np.int32) for piece in chosen.tolist()])  # type: ignore[attr-defined]
        write_aside(path, sealed_json(tokenizer.state_dict()))
    return Tokenizer.from_state(unsealed_json(path))
