"""The data module of scores: packed and augmented batches of tokens, which resume exactly."""

import dataclasses
import hashlib
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
from etude.data.cache.intact import check_sums, rebuilding_damage
from etude.data.cache.lock import held
from etude.data.labels import refuse_augmented
from etude.data.scores import build
from etude.data.scores.about_training import AboutTraining
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
from etude.wording import counted

INFILLED = 0.5  # share of the pieces with holes, where the tokenizer can infill
SHARES = (0.8, 0.1, 0.1)  # of train, val and test, unless others are asked for
IDENTITY = frozenset({"path", "file", "sha256", "id", "split"})


class MusicDataModule(CorpusDataModule, AboutTraining):
    """Scores of a corpus as batches of packed rows of tokens.

    Training rows have `max_len` tokens of whole documents (or windows cut at bars). An epoch is a fixed number of batches;
    the next epoch continues where it ended. The order depends on (seed, pass) and augmentation on (seed, pass, piece) alone,
    so both are the same with any number of workers and ranks. To shorten epochs, set `batches_per_epoch`; the trainer's
    `limit_train_batches` would lose batches that workers have already drawn.
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
        split: Sequence[float] = SHARES,
        transpose: Sequence[int] | None = None,
        tempo_scale: Sequence[float] | None = None,
        velocity_shift: int = 0,
        controls: Sequence[str] | None = None,
        control_dropout: float = 0.2,
        infill: float | None = None,
        complexity: bool = False,
        targets: Sequence[str] = (),
        labels_file: str | None = None,
    ):
        """Checks the arguments; reads nothing.

        corpus: the source of the scores.
        tokenizer: makes the tokenizer; called with genres=[...] when the genres are known.
        root: the place of the files, for corpora that need it (a folder, the JSB file); None for the corpus's own.
        cache_dir: the folder of parsed scores, tokens and manifests; it can be shared and deleted.
        max_len: tokens of a training row.
        max_eval_len: tokens of an evaluation row. Longer pieces are cut at bars.
        eval_overlap: share of an evaluation row, in [0, 0.9], that repeats the previous part of the piece as context.
        batch_size: rows of a batch, on each rank.
        batches_per_epoch: None for about one pass over the data.
        num_workers: processes that load batches.
        prepare_workers: processes that parse and tokenise; None for one per core.
        seed: of order, augmentation and control dropout.
        split: shares of train, val and test; duplicates stay together, and refused for a corpus that prescribes it.
        transpose: [lowest, highest] shift in semitones.
        tempo_scale: [lowest, highest] factor.
        velocity_shift: largest change of velocity up or down, in bins.
        controls: labels whose control tokens precede each piece: some of genre, key, metre, tempo_bpm, num_bars, programs;
            None for all, [] for none, as for benchmarks of unconditional likelihood.
        control_dropout: probability with which each control token is left out in training.
        infill: share of the pieces that get holes in training, so that the model learns to fill them in; None for 0.5 if the
            tokenizer can infill and 0 if not. Validation and test have none.
        complexity: add complexity_* columns to the manifest (costs a pass over the scores).
        targets: columns of the manifest or of `labels_file` whose classes are in the batches as `label_COLUMN`.
        labels_file: a CSV with a column `file`, with names as in the manifest, and any other columns; one line per file.

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
        self.infill = infill
        self.augmentation = Augmentation(
            transpose=checked_range("transpose", transpose, -MAX_SHIFT, MAX_SHIFT),
            tempo_scale=checked_range("tempo_scale", tempo_scale, 0.25, 4.0),
            velocity_shift=velocity_shift,
            control_dropout=control_dropout,
        )
        self._check()
        if self.corpus.prescribes_split and tuple(self.ratios.values()) != SHARES:
            raise ValueError(
                f"data.split={list(self.ratios.values())} changes nothing, since {type(self.corpus).__name__} says which split "
                "each piece is in; leave it out"
            )
        refuse_augmented(self.targets, transpose=self.augmentation.transpose, tempo_scale=self.augmentation.tempo_scale)
        self.folder: Path | None = None
        self._manifest: tuple[Path, pa.Table] | None = None
        self._score_rows: dict[str, np.ndarray] = {}
        self._scores_state: tuple[int, int] | None = None  # of the store in which `_score_rows` are rows
        self._tokenizer: Tokenizer | None = None

    def _check(self) -> None:
        self._check_lowest(max_len=16, max_eval_len=16)
        for name, value, high in (
            ("eval_overlap", self.eval_overlap, 0.9),
            ("control_dropout", self.augmentation.control_dropout, 1.0),
            ("infill", self.infill or 0.0, 1.0),
        ):
            if not 0 <= value <= high:
                raise ValueError(f"{name}={value} must be in [0, {high}]")

    # --- preparing ---

    def prepare(self) -> None:
        """Prepares manifest, tokenizer and token store; can be repeated, and called in several processes at once.

        Raises: ValueError if there are no usable files; OSError for a full disk; KeyboardInterrupt after saving finished work.
        """
        if self._tokenizer is not None:
            return
        rebuilding_damage(self._open)
        prescribed = self.corpus.prescribes_split or any(source.split for source in self._plan.sources)
        for line in [] if prescribed else lopsided_splits(self.manifest(), self.ratios):
            print(line, file=sys.stderr)
        if bad := len(self.quarantine):
            path = self._view_folder / "quarantine.tsv"
            print(f"{counted(bad, 'piece or file is', 'pieces or files are')} left out; {path} says why", file=sys.stderr)

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
                plan.read_again(num_workers=self.prepare_workers)
                build_view(view, tokenizer, controls=self.controls, cache_dir=self.cache_dir, num_workers=self.prepare_workers)
        check_sums(view)
        self._view_folder = view
        self._views = {split: open_view(view, split, tokenizer, self.cache_dir) for split in SPLITS}
        if self.infill and not tokenizer.can_infill:
            raise ValueError(
                f"infill={self.infill} needs tokens for it, which this tokenizer lacks; set tokenizer=remi, or data.infill=0"
            )
        pairs = view / f"bpe-{tokenizer.params.get('bpe_vocab_size')}.json"
        if len(self._views["train"]) == 0:
            raise ValueError("there is no training piece; add files, or give data.split another first share")
        self._tokenizer = with_byte_pairs(tokenizer, self._views["train"], pairs)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer with the genres of the corpus; the first use prepares the data."""
        self.prepare()
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def parts(self) -> dict[str, Any]:
        """Arguments for building a task: the tokenizer, whether pieces have holes, and the classes of each of `targets`.

        And `label_dropout`, the probability with which control tokens are left out in training.
        """
        own = {"infills": self._training.infill > 0, "label_dropout": self.augmentation.control_dropout}
        return {"tokenizer": self.tokenizer, **own, **self.label_parts}

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
        rows: list[dict[str, Any]] = self.manifest(split).drop_columns(["id"]).to_pylist()
        return rows

    def score(self, split: str, index: int) -> Score:
        """Returns the cached score of row `index` of `manifest(split)`."""
        return rebuilding_damage(lambda: self._score(split, index))

    def _score(self, split: str, index: int) -> Score:
        folder = build.scores_folder(self.cache_dir)
        if self._scores_state != build.state_of_scores(folder):
            self._score_rows.clear()  # the store was rebuilt, by this process or another, perhaps in another order
        if split not in self._score_rows:
            self._score_rows[split] = self._rows_of_scores(folder, piece_keys(self.manifest(split)))
            self._scores_state = build.state_of_scores(folder)
        return build.load_score(folder, int(self._score_rows[split][index]))

    def _rows_of_scores(self, folder: Path, keys: np.ndarray) -> np.ndarray:
        rows = build.rows_of_scores(folder, keys)
        if (rows >= 0).all():
            return rows
        with held(self.cache_dir):  # the cached scores were removed, but not the files made from them
            self._score_rows.clear()
            self._plan.read_again(num_workers=self.prepare_workers)
        return build.open_scores(folder).rows(keys)

    def view(self, split: str) -> View:
        """The tokenised pieces of one split: `view(split).body(i)` are the base ids of piece i, without a copy."""
        self.prepare()
        return self._views[split]

    # --- choosing ---

    def pieces(self) -> dict[str, np.ndarray]:
        """Returns the columns of `held_out("train")` with complexity_*, which are measured once."""
        table = self.manifest("train")
        if not any(name.startswith("complexity_") for name in table.column_names):
            table = rebuilding_damage(lambda: self._with_complexity(table))
        return self._columns("train", table)

    def _columns(self, split: str, table: pa.Table) -> dict[str, np.ndarray]:
        view = self.view(split)
        columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names if name not in IDENTITY}
        columns["tokens"] = np.zeros(len(table), np.int64)
        columns["tokens"][view.table["row"]] = view.table["length"]
        return self.with_labels(split, columns)

    def _with_complexity(self, table: pa.Table) -> pa.Table:
        if not absent(build.complexity_folder(self.cache_dir), piece_keys(table)):  # a complete cache may be read-only
            return with_complexity(table, self.cache_dir, self.prepare_workers)
        with held(self.cache_dir):
            self._plan.read_again(num_workers=self.prepare_workers)
            return with_complexity(table, self.cache_dir, self.prepare_workers)

    def vary(
        self,
        *,
        transpose: Sequence[int] | None = None,
        tempo_scale: Sequence[float] | None = None,
        velocity_shift: int | None = None,
    ) -> None:
        """Changes ranges of augmentation from the next `train_dataloader` on; None keeps a range.

        Raises: ValueError for an invalid range.
        """
        changes: dict[str, Any] = {
            "transpose": checked_range("transpose", transpose, -MAX_SHIFT, MAX_SHIFT),
            "tempo_scale": checked_range("tempo_scale", tempo_scale, 0.25, 4.0),
            "velocity_shift": velocity_shift,
        }
        self.augmentation = dataclasses.replace(
            self.augmentation, **{name: value for name, value in changes.items() if value is not None}
        )

    # --- loading ---

    @property
    def _training(self) -> Augmentation:
        """The augmentation of training, with holes for models that can fill them."""
        share = self.infill if self.infill is not None else INFILLED if self.tokenizer.can_infill else 0.0
        return dataclasses.replace(self.augmentation, infill=share, most_infilled=self.max_len // 2)

    def _documents(self, split: str, augmentation: Augmentation) -> Documents:
        return Documents(self.view(split), self.tokenizer, augmentation=augmentation, seed=self.seed)

    @property
    def num_training_pieces(self) -> int:
        """Number of pieces in the training split that the tokenizer can represent."""
        return len(self.view("train"))

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch of training, on each rank."""
        return self._batches_for(self._documents("train", self._training).num_tokens, row=self.max_len)

    def train_dataloader(self) -> StatefulDataLoader:
        """Packed rows without end; an epoch is a fixed number of batches, and its state resumes within an epoch."""
        rank, world = self._place()
        documents = self._documents("train", self._training)
        sampler = RowSampler(
            Packer(documents, self.max_len, rules=self._rules),
            batch_size=self.batch_size,
            num_batches=self._batches_for(documents.num_tokens, row=self.max_len),
            rank=rank,
            world=world,
        )
        refuse_augmented(self.targets, transpose=self.augmentation.transpose, tempo_scale=self.augmentation.tempo_scale)
        return self._loader(PackedRows(documents, max_len=self.max_len, evaluation=False, labels=self.classes("train")), sampler)

    def held_out(self, split: str) -> dict[str, np.ndarray]:
        """Returns the columns of `manifest(split)` except paths and hashes, and labels of `targets` that the manifest lacks.

        `tokens` is the length in tokens, 0 for a piece that the tokenizer can't represent.
        """
        return self._columns(split, self.manifest(split))

    def loader_of(self, split: str, chosen: np.ndarray) -> StatefulDataLoader:
        """The chosen pieces of a split once, without augmentation. chosen: bool, for each row of `held_out(split)`."""
        return self._evaluation(split, chosen)

    def _evaluation(self, split: str, chosen: np.ndarray | None = None) -> StatefulDataLoader:
        rank, world = self._place()
        documents = self._documents(split, Augmentation())
        rules = {} if chosen is None else {"chosen": lambda rows, draw: chosen[rows].astype(np.float64)}
        packer = Packer(documents, self.max_eval_len, shuffle=False, overlap=self.eval_overlap, rules=rules)
        size = max(1, self.batch_size * self.max_len // self.max_eval_len)
        batches = evaluation_batches(packer, batch_size=size, rank=rank, world=world)
        return self._loader(
            PackedRows(documents, max_len=self.max_eval_len, evaluation=True, labels=self.classes(split)), batches
        )

    # --- state ---

    def contents(self) -> list[tuple[str, str, str]]:
        """Returns (split, file, SHA-256) for each file that is used, and ("all", "tokens", SHA-256 of the tokens)."""
        self.prepare()
        table = self.manifest().select(["split", "file", "sha256"])
        rows = sorted(set(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)))
        digest = hashlib.sha256()
        for split in SPLITS:
            view = self._views[split]
            for piece in range(len(view)):
                digest.update(np.ascontiguousarray(view.body(piece)).data)
        return [*((str(split), str(file), str(sha)) for split, file, sha in rows), ("all", "tokens", digest.hexdigest())]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to notice that the data changed; the loaders keep their own state."""
        tokenizer = self.tokenizer.fingerprint  # prepares
        assert self.folder is not None
        return {"dataset": self.folder.name, "tokenizer": tokenizer}
