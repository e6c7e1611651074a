"""Music as a LightningDataModule: from a corpus and a tokenizer to packed, augmented, exactly resumable batches."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from symusic import Score
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.data.base import CorpusDataModule, at_root, checked_range
from etude.data.cache.fill import absent
from etude.data.cache.intact import check_sums, made_anew
from etude.data.cache.lock import held
from etude.data.labels import refuse_augmented
from etude.data.scores import build
from etude.data.scores.batches import PackedRows, RowSampler, evaluation_batches
from etude.data.scores.corpora import Corpus
from etude.data.scores.documents import Augmentation, Documents
from etude.data.scores.manifest import (
    SPLITS,
    ManifestPlan,
    lopsided_splits,
    piece_keys,
    read_quarantine,
    with_complexity,
)
from etude.data.scores.packing import Packer
from etude.data.scores.tokens import MAX_SHIFT
from etude.data.scores.view import View, build_view, open_view, view_folder, with_byte_pairs
from etude.tokens.tokenizer import LABELS, Tokenizer

IDENTITY = frozenset({"path", "file", "sha256", "id", "split"})


class MusicDataModule(CorpusDataModule):
    """Real scores as batches of packed token rows.

    Training rows hold whole documents (or windows cut at bars) of `max_len` tokens; an epoch is a fixed number of
    batches, after which the stream goes on where it stood. The order is a function of (seed, pass), every variation
    one of (seed, pass, piece): the same with any number of workers and ranks. End an epoch early with
    `batches_per_epoch`, not with the trainer's `limit_train_batches`, which drops batches that workers have already
    drawn.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        tokenizer: Callable[..., Tokenizer],
        root: str | None = None,
        cache_dir: str = "outputs/cache",
        max_len: int = 1024,
        max_eval_len: int = 2048,
        eval_overlap: float = 0.5,
        batch_size: int = 4,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        prepare_workers: int | None = None,
        seed: int = 0,
        split: Sequence[float] = (0.8, 0.1, 0.1),
        transpose: Sequence[int] | None = None,
        tempo_scale: Sequence[float] | None = None,
        velocity_shift: int = 0,
        controls: Sequence[str] | None = None,
        control_dropout: float = 0.2,
        complexity: bool = False,
        targets: Sequence[str] = (),
        labels_file: str | None = None,
    ):
        """Checks the arguments; reads nothing.

        corpus: where scores come from. tokenizer: called with genres=[...] once they are known.
        root: where the corpus's files are, for corpora that must be told (a folder, the JSB file); None: as the corpus
            says.
        cache_dir: holds parsed scores, tokens and manifests; may be shared and may be deleted.
        max_len: tokens in a training row. max_eval_len: in an evaluation row; longer pieces are cut at bars, and
            `eval_overlap` (share of a row, [0, 1)) of what was counted before is repeated as context.
        batch_size: rows of a batch, on each rank. batches_per_epoch: None for about one pass over the data.
        num_workers: processes that load batches. prepare_workers: that parse and tokenise; None for one a core.
        seed: of order, augmentation and control dropout.
        split: shares of train, val and test, by duplicate group; corpora with a canonical split keep theirs.
        transpose: [lowest, highest] shift in semitones. tempo_scale: [lowest, highest] factor. velocity_shift: bins
            either way.
        controls: labels whose tokens stand in front of each piece, of genre, key, metre, tempo_bpm, num_bars,
            programs; None for all, [] for none, as benchmarks of unconditional likelihood want it.
        control_dropout: probability with which each control is hidden in training.
        complexity: add complexity_* columns to the manifest (costs a pass over the scores).
        targets: columns of the manifest, or of `labels_file`, that batches hold as classes `label_COLUMN` for a task to learn.
        labels_file: a CSV with a column `file`, named as in the manifest, and any others; one line for each file.

        Raises: ValueError for an argument out of range.
        """
        super().__init__(
            cache_dir=cache_dir, batch_size=batch_size, batches_per_epoch=batches_per_epoch, num_workers=num_workers,
            prepare_workers=prepare_workers, seed=seed, split=split, targets=targets, labels_file=labels_file,
        )  # fmt: skip
        self.corpus, self._make_tokenizer, self.complexity = at_root(corpus, root), tokenizer, complexity
        self.max_len, self.max_eval_len, self.eval_overlap = max_len, max_eval_len, eval_overlap
        self.controls = tuple(LABELS if controls is None else (name for name in LABELS if name in controls))
        if controls is not None and (unknown := sorted(set(controls) - set(LABELS))):
            raise ValueError(f"controls={list(controls)}: {unknown[0]!r} is unknown; valid are {', '.join(LABELS)}")
        self.augmentation = Augmentation(
            transpose=checked_range("transpose", transpose, -MAX_SHIFT, MAX_SHIFT),
            tempo_scale=checked_range("tempo_scale", tempo_scale, 0.25, 4.0),
            velocity_shift=velocity_shift,
            control_dropout=control_dropout,
        )
        self._check()
        refuse_augmented(self.targets, transpose=self.augmentation.transpose, tempo_scale=self.augmentation.tempo_scale)
        self.folder: Path | None = None
        self._manifest: tuple[Path, pa.Table] | None = None
        self._score_rows: dict[str, np.ndarray] = {}
        self._tokenizer: Tokenizer | None = None

    def _check(self) -> None:
        self._check_lowest(max_len=16, max_eval_len=16)
        for name, value, high in (
            ("eval_overlap", self.eval_overlap, 0.9),
            ("control_dropout", self.augmentation.control_dropout, 1.0),
        ):
            if not 0 <= value <= high:
                raise ValueError(f"{name}={value} must lie in [0, {high}]")

    # --- preparing ---

    def prepare(self) -> None:
        """Makes manifest, tokenizer and token store ready; safe to repeat, and to call in several processes at once.

        Raises: ValueError where there are no usable files; OSError for a full disk; KeyboardInterrupt after keeping
            what is done.
        """
        if self._tokenizer is not None:
            return
        made_anew(self._open)
        for line in lopsided_splits(self.manifest(), self.ratios):
            print(line, file=sys.stderr)
        bad = len(self.quarantine)
        if bad:
            path = self._view_folder / "quarantine.tsv"
            print(f"{bad} pieces or files are left out; {path} says why", file=sys.stderr)

    def _open(self) -> None:
        sources = self.corpus.files()
        plan = ManifestPlan(self.corpus, sources, cache_dir=self.cache_dir, ratios=self.ratios, complexity=self.complexity)
        if not plan.done:
            with held(self.cache_dir):
                plan.build(num_workers=self.prepare_workers)
        check_sums(plan.folder)
        self.folder, self._plan = plan.folder, plan
        genres = pc.unique(pq.read_table(plan.folder / "manifest.parquet", columns=["genre"])["genre"]).to_pylist()
        tokenizer = self._make_tokenizer(genres=sorted(genres))
        view = view_folder(plan.folder, tokenizer, controls=self.controls, cache_dir=self.cache_dir)
        if not view.exists():
            with held(self.cache_dir):
                plan.read(num_workers=self.prepare_workers)
                build_view(view, tokenizer, controls=self.controls, cache_dir=self.cache_dir, num_workers=self.prepare_workers)
        check_sums(view)
        self._view_folder = view
        self._views = {split: open_view(view, split, tokenizer, self.cache_dir) for split in SPLITS}
        pairs = view / f"bpe-{tokenizer.params.get('bpe_vocab_size')}.json"
        if len(self._views["train"]) == 0:
            raise ValueError("there is no training piece; add files, or give data.split another first share")
        self._tokenizer = with_byte_pairs(tokenizer, self._views["train"], pairs)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which knows the corpus's genres; prepares the data on first use."""
        self.prepare()
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def parts(self) -> dict[str, Any]:
        """What a task is built with: the tokenizer, and the classes of each of `targets`."""
        return {"tokenizer": self.tokenizer, **(self.label_parts)}

    @property
    def quarantine(self) -> list[tuple[str, str, str]]:
        """(file, piece, reason) of everything that could not be read or tokenised."""
        return read_quarantine(self._view_folder / "quarantine.tsv")

    # --- looking at the data ---

    def manifest(self, split: str | None = None) -> pa.Table:
        """The manifest of one split, or of all pieces: columns as in `manifest.py`."""
        if self.folder is None:
            self.prepare()
        assert self.folder is not None
        if self._manifest is None or self._manifest[0] != self.folder:
            self._manifest = self.folder, pq.read_table(self.folder / "manifest.parquet")
        table = self._manifest[1]
        return table if split is None else table.filter(pc.equal(table["split"], split))

    def _rows(self, split: str) -> list[dict[str, Any]]:
        return self.manifest(split).drop_columns(["id"]).to_pylist()

    def score(self, split: str, index: int) -> Score:
        """The cached score of row `index` of `manifest(split)`."""
        return made_anew(lambda: self._score(split, index))

    def _score(self, split: str, index: int) -> Score:
        folder = build.scores_folder(self.cache_dir)
        if split not in self._score_rows or not (folder / "scores" / "head.json").exists():
            self._score_rows[split] = self._rows_of_scores(folder, piece_keys(self.manifest(split)))
        return build.load_score(folder, int(self._score_rows[split][index]))

    def _rows_of_scores(self, folder: Path, keys: np.ndarray) -> np.ndarray:
        try:
            rows = build.open_scores(folder).rows(keys)
        except FileNotFoundError:
            rows = np.full(len(keys), -1)
        if (rows >= 0).all():
            return rows
        with held(self.cache_dir):  # the scores were removed, and what was made of them stayed
            self._plan.read(num_workers=self.prepare_workers)
        return build.open_scores(folder).rows(keys)

    def view(self, split: str) -> View:
        """The tokenised pieces of one split: `view(split).body(i)` are the base ids of piece i, without a copy."""
        self.prepare()
        return self._views[split]

    # --- choosing ---

    def pieces(self) -> dict[str, np.ndarray]:
        """The columns of `manifest("train")` but its paths and hashes, row by row, with every complexity_* (measured once)
        and `tokens`, 0 for a piece that the tokenizer could not hold."""
        table, view = self.manifest("train"), self.view("train")
        if not any(name.startswith("complexity_") for name in table.column_names):
            table = made_anew(lambda: self._with_complexity(table))
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names if name not in IDENTITY}
        columns["tokens"] = np.zeros(len(table), np.int64)
        columns["tokens"][view.table["row"]] = view.table["length"]
        return columns

    def _with_complexity(self, table: pa.Table) -> pa.Table:
        if not absent(build.complexity_folder(self.cache_dir), piece_keys(table)):  # a complete cache may be one to read alone
            return with_complexity(table, self.cache_dir, self.prepare_workers)
        with held(self.cache_dir):
            self._plan.read(num_workers=self.prepare_workers)
            return with_complexity(table, self.cache_dir, self.prepare_workers)

    def vary(
        self,
        *,
        transpose: Sequence[int] | None = None,
        tempo_scale: Sequence[float] | None = None,
        velocity_shift: int | None = None,
    ) -> None:
        """Takes other ranges of augmentation from the next `train_dataloader` on; None leaves one as it is.

        Raises: ValueError for a range that the arguments of this class would not take either.
        """
        wish: dict[str, Any] = {
            "transpose": checked_range("transpose", transpose, -MAX_SHIFT, MAX_SHIFT),
            "tempo_scale": checked_range("tempo_scale", tempo_scale, 0.25, 4.0),
            "velocity_shift": velocity_shift,
        }
        self.augmentation = dataclasses.replace(
            self.augmentation, **{name: value for name, value in wish.items() if value is not None}
        )

    # --- loading ---

    def _documents(self, split: str, augmentation: Augmentation) -> Documents:
        return Documents(self.view(split), self.tokenizer, augmentation=augmentation, seed=self.seed)

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch of training, on each rank."""
        return self._batches_for(self._documents("train", self.augmentation).num_tokens, row=self.max_len)

    def train_dataloader(self) -> StatefulDataLoader:
        """Endless packed rows, in epochs of a fixed number of batches; its state resumes in the middle of an epoch."""
        rank, world = self._place()
        documents = self._documents("train", self.augmentation)
        sampler = RowSampler(
            Packer(documents, self.max_len, rules=self._rules),
            batch_size=self.batch_size,
            num_batches=self._batches_for(documents.num_tokens, row=self.max_len),
            rank=rank,
            world=world,
        )
        refuse_augmented(self.targets, transpose=self.augmentation.transpose, tempo_scale=self.augmentation.tempo_scale)
        return self._loader(PackedRows(documents, max_len=self.max_len, evaluation=False, labels=self.classes("train")), sampler)

    def _evaluation(self, split: str) -> StatefulDataLoader:
        rank, world = self._place()
        documents = self._documents(split, Augmentation())
        packer = Packer(documents, self.max_eval_len, shuffle=False, overlap=self.eval_overlap)
        size = max(1, self.batch_size * self.max_len // self.max_eval_len)
        batches = evaluation_batches(packer, batch_size=size, rank=rank, world=world)
        return self._loader(
            PackedRows(documents, max_len=self.max_eval_len, evaluation=True, labels=self.classes(split)), batches
        )

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to notice that the data changed; the loaders keep their own state."""
        tokenizer = self.tokenizer.fingerprint  # prepares
        assert self.folder is not None
        return {"dataset": self.folder.name, "tokenizer": tokenizer}
