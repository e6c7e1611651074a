"""The data module of audio: batches of mel segments of several styles, which resume exactly."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from etude.audio.degradations import check_defects
from etude.audio.mel import MelContract
from etude.data.audio.bandwidth import left_out_band
from etude.data.audio.batches import Clips, DrawSampler, FixedSegments, RandomSegments, chances_of
from etude.data.audio.build import UNIT, clip_key, clips_folder, encode_all
from etude.data.audio.checked import faulty_files
from etude.data.audio.corpora import AudioCorpus, Failures
from etude.data.audio.graded import FixedGraded, RandomGraded, Spoiler, onset_frames, partners_of
from etude.data.audio.held_out import evaluation_batches, evaluation_rows
from etude.data.audio.notes import PieceNotes, piece_notes, with_notes
from etude.data.audio.splits import (
    Piece,
    assign,
    chosen_styles,
    columns_of,
    is_paired,
    pieces_of,
    refuse_empty,
    same_songs,
    usable,
    whole_songs,
)  # fmt: skip
from etude.data.audio.statistics import band_statistics, complexities
from etude.data.base import CorpusDataModule, at_root, checked_range
from etude.data.cache.intact import rebuilding_damage
from etude.data.scores.manifest import SPLITS
from etude.music.roll import KINDS, PITCHES, instruments_of
from etude.wording import counted

LOUDEST_CHANGE_DB = 40


class StyleDataModule(CorpusDataModule):
    """Audio of several styles as batches of mel segments.

    Training batches hold {"mel": float32 [s, b, m, f]}, normalised to about [-1, 1] by the contract: for each of the s
    `styles`, b segments of f frames at random positions of random pieces, independent of the other styles. With `waveform`
    they also hold {"samples": float32 [s, b, n]}, n = f * hop; with `score` the piano roll of p instruments {"roll": float32
    [s, b, 2, p, 128, f]} and {"stop": float32 [s, b, f]}, 1 after the end of the music. Draws depend on (seed, style, number)
    alone, so they are the same with any number of workers and ranks. Validation and test batches have the same form and hold
    each held-out segment once; if `paired`, row i is the same position of the same song in every style.
    """

    def __init__(
        self,
        *,
        corpus: AudioCorpus,
        contract: MelContract,
        root: str | None = None,
        cache_dir: str = "outputs/cache",
        styles: Sequence[str] | None = None,
        segment_frames: int = 128,
        batch_size: int = 4,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        prepare_workers: int | None = None,
        seed: int = 0,
        split: Sequence[float] = (0.8, 0.1, 0.1),
        gain_db: Sequence[float] | None = None,
        waveform: bool = False,
        score: bool = False,
        targets: Sequence[str] = (),
        labels_file: str | None = None,
        defects: Sequence[str] | None = None,
        grader: str | None = None,
        find: Callable[..., Any] | None = None,
        load: Callable[..., Any] | None = None,
    ):
        """Checks the arguments; reads nothing.

        corpus: the source of the audio.
        contract: the settings of the mels.
        root: the place of the files, for corpora that need it; None for the corpus's own.
        cache_dir: the folder of samples and mels; it can be shared and deleted.
        styles: the styles of the corpus to use, in this order; None for all.
        segment_frames: f, frames of a segment.
        batch_size: b, segments of each style in a batch, on each rank.
        batches_per_epoch: None for about one pass over the style with the least audio.
        num_workers: processes that load batches.
        prepare_workers: processes that decode and encode; None for one per core.
        seed: of the random draws.
        split: shares of train, val and test, by file; corpora with prescribed splits keep them.
        gain_db: [lowest, highest] random change of loudness in training, in decibels within [-40, 40]; None for none.
        waveform: batches also hold the samples. Then one style is enough, as for a vocoder.
        score: batches also hold the piano roll of what is played, and where it ends; for corpora that know the scores of their
            audio. Then one style is enough.
        targets: columns of the manifest or of `labels_file` whose classes are in the batches as `label_COLUMN`.
        labels_file: a CSV with a column `file`, with names as in the manifest, and any other columns; one line per file.
        defects: defects of `audio.degradations` that segments are given; batches are then those of `graded.GradedSegments`, for
            task=grader, one style is enough, and gain_db acts on segments of equal level. None for clean audio.
        grader: a run of task=grader that looks for defects in all files before training and tells them; None for none.
        find, load: how to find and load that run, as `run/parts.py` gives them.

        Raises: ValueError for an argument out of range.
        """
        super().__init__(
            cache_dir=cache_dir, batch_size=batch_size, batches_per_epoch=batches_per_epoch, num_workers=num_workers,
            prepare_workers=prepare_workers, seed=seed, split=split, targets=targets, labels_file=labels_file,
        )  # fmt: skip
        self.corpus, self.contract, self.waveform, self.score = at_root(corpus, root), contract, waveform, score
        if score and not self.corpus.has_scores:
            raise ValueError(
                "data.score=true: this data has no scores; give data=arranged, or your own pairs of audio and MIDI files: "
                "data=paired_folder data.root=DIR"
            )
        self.segment_frames, self._wanted = segment_frames, styles
        self.gain_db = checked_range("gain_db", gain_db, -LOUDEST_CHANGE_DB, LOUDEST_CHANGE_DB)
        self.defects = None if defects is None else check_defects(defects)
        self.grader, self._find, self._load = grader, find, load
        self._with_samples = waveform or defects is not None
        self._check_lowest(segment_frames=1)
        self._styles: tuple[str, ...] = ()
        self._pieces: list[Piece] | None = None
        self._notes: dict[tuple[str, str], PieceNotes] = {}
        self._instruments: tuple[int, ...] = ()
        self._selective: set[str] = set()  # rules that may leave a style out

    # --- preparing ---

    def prepare(self) -> None:
        """Makes clips and splits ready; safe to repeat, and to call in several processes at once.

        Raises: ValueError where a style has no usable audio; OSError for a full disk; KeyboardInterrupt after keeping
            what is done.
        """
        if self._pieces is None:
            rebuilding_damage(self._open)

    def _open(self) -> None:
        least = 1 if self.waveform or self.score or self.targets or self.defects is not None else 2
        where = self.corpus.root or type(self.corpus).__name__
        styles = chosen_styles(self._wanted, self.corpus.available(), least=least, where=where)
        recordings, failures = self.corpus.recordings(styles, cache_dir=self.cache_dir, num_workers=self.prepare_workers)
        facts = encode_all(recordings, self.contract, cache_dir=self.cache_dir, num_workers=self.prepare_workers)
        seconds, tables = self.contract.hop_length / self.contract.sample_rate, dict[str, np.ndarray]()
        if self.score:
            apart, notes = self.corpus.max_difference, self.cache_dir / "notes"
            recordings, facts, tables, unmatched = with_notes(recordings, facts, self.contract, max_difference=apart, cache=notes)
            failures = [*failures, *unmatched]
        pieces, failed, clipping = usable(recordings, facts, segment=self.segment_frames, frame_seconds=seconds)
        self._quarantine = [*failures, *failed]
        refuse_empty(pieces, styles, self._quarantine)
        pieces, lines = self._split(pieces, styles)
        self._clips = {
            (split, style): Clips(clips_folder(self.cache_dir, self.contract), self.contract, pieces_of(pieces, split, style))
            for split in SPLITS
            for style in styles
        }
        if self.score:
            self._take_notes(pieces, tables, {clip_key(r): f.get("frames", 0) for r, f in zip(recordings, facts, strict=True)})
        self._statistics = band_statistics(
            [self._clips["train", style] for style in styles],
            cache=self.cache_dir / "statistics",
            name=self._digest(pieces, styles),
        )
        if self.defects is not None:
            each, cache = [(split, style) for split in SPLITS for style in styles], self.cache_dir / "statistics"
            name = self._digest(pieces, styles)
            found = onset_frames(recordings, [self._clips[place] for place in each], cache=cache, name=name)
            self._onsets = dict(zip(each, found, strict=True))
        self._styles, self._pieces, self._paired = styles, pieces, is_paired(pieces, styles)
        lines += left_out_band(recordings, self.contract)
        if clipping:
            lines.append(f"{counted(len(clipping), 'file clips', 'files clip')}, such as {clipping[0]}; kept nevertheless")
        if self.grader is not None:
            clips = [self._clips[split, style] for split in SPLITS for style in styles]
            lines += faulty_files(self.grader, clips, cache=self.cache_dir / "statistics", find=self._find, load=self._load)
        if self._quarantine:
            left = counted(len(self._quarantine), "file is", "files are")
            lines.append(f"{left} left out, such as {': '.join(filter(None, self._quarantine[0]))}")
        print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr)

    def _take_notes(self, pieces: list[Piece], tables: dict[str, np.ndarray], last_frames: dict[str, int]) -> None:
        """Keeps the notes of the pieces; the instruments of the rolls are those of the training pieces."""
        self._instruments = instruments_of(tables[piece.name] for piece in pieces if piece.split == "train")
        options: Any = {"last_frames": last_frames, "instruments": self._instruments}
        options["frame_seconds"] = self.contract.hop_length / self.contract.sample_rate
        self._notes = {place: piece_notes(clips.pieces, tables, **options) for place, clips in self._clips.items()}

    def _split(self, pieces: list[Piece], styles: Sequence[str]) -> tuple[list[Piece], list[str]]:
        if pieces[0].split:
            return whole_songs(pieces, styles), []
        paired = self.corpus.paired
        if paired and not same_songs(pieces, styles):
            raise ValueError("data.corpus.paired=true, but the styles' usable files differ in their names; make them the same")
        hop, by_song = self.contract.hop_length, paired is not False and same_songs(pieces, styles)
        options: Any = {"gap": -(-self.contract.n_fft // hop), "frame_seconds": hop / self.contract.sample_rate}
        return assign(pieces, styles, self.ratios, segment=self.segment_frames, by_song=by_song, **options)

    # --- looking at the data ---

    @property
    def styles(self) -> tuple[str, ...]:
        """The styles, in the order of the first dimension of the batches; the first use prepares the data."""
        self.prepare()
        return self._styles

    @property
    def paired(self) -> bool:
        """Whether the held-out songs are the same in every style."""
        self.prepare()
        return self._paired

    @property
    def statistics(self) -> Tensor:
        """Mean, deviation, maximum and quiet level of each band of the training log mels, in nats: float32 [s, 4, m]."""
        self.prepare()
        return self._statistics

    @property
    def parts(self) -> dict[str, Any]:
        """Arguments for building a task: contract, styles, statistics, defects, instruments, the classes of each of `targets`."""
        known = {"contract": self.contract, "styles": self.styles, "statistics": self.statistics, **self.label_parts}
        if self.defects is not None:
            known |= {"defects": self.defects, "segment_frames": self.segment_frames}
        return known | ({"instruments": self._instruments} if self.score else {})

    @property
    def quarantine(self) -> Failures:
        """(file, piece, reason) of all files that could not be used."""
        self.prepare()
        return self._quarantine

    def manifest(self, split: str | None = None) -> pa.Table:
        """Returns the table of the pieces of one split, or of all: name, style, song, split, source, licence, clip, frames."""
        self.prepare()
        assert self._pieces is not None
        return pa.Table.from_pylist([dataclasses.asdict(piece) for piece in self._pieces if split in (None, piece.split)])

    file_column = "name"

    def _rows(self, split: str) -> list[dict[str, Any]]:
        """Returns the columns of each piece, style by style."""
        return [dataclasses.asdict(piece) for style in self.styles for piece in self._of(split, style).pieces]

    def _style_classes(self, split: str) -> list[dict[str, np.ndarray]]:
        ends = np.cumsum([self.num_pieces(split, style) for style in self.styles])[:-1]
        parts = {name: np.split(classes, ends) for name, classes in self.classes(split).items()}
        return [{name: part[number] for name, part in parts.items()} for number in range(len(self.styles))]

    def _of(self, split: str, style: str) -> Clips:
        self.prepare()
        if (split, style) not in self._clips:
            raise ValueError(f"split={split}, style={style}: valid are {', '.join(SPLITS)} and {', '.join(self.styles)}")
        return self._clips[split, style]

    def num_pieces(self, split: str, style: str) -> int:
        """Returns the number of pieces of a style in a split."""
        return len(self._of(split, style))

    def piece(self, split: str, style: str, index: int) -> Piece:
        """Returns the facts about piece `index`; in paired splits an index is the same song in every style."""
        return self._of(split, style).pieces[index]

    def samples(self, split: str, style: str, index: int) -> Tensor:
        """Returns the mono samples of a piece at the contract's rate, float32 [n]."""
        return torch.from_numpy(self._of(split, style).samples_n(index).astype(np.float32) / UNIT)

    def log_mel(self, split: str, style: str, index: int) -> Tensor:
        """Returns the natural-log mels of a piece, float32 [m, f]."""
        return torch.from_numpy(self._of(split, style).mel_fm(index).astype(np.float32).T.copy())

    def roll(self, split: str, style: str, index: int) -> Tensor:
        """Returns the piano roll of a whole piece, float32 [2, p, 128, f]. Raises: ValueError without `score`."""
        clips = self._of(split, style)
        if not self.score:
            raise ValueError("the data were opened without notes; set data.score=true")
        sizes = (len(KINDS), len(self._instruments), PITCHES, clips.pieces[index].frames)
        found = np.zeros(sizes, np.float32)
        self._notes[split, style].write(found, np.zeros(sizes[-1], np.float32), index, 0)
        return torch.from_numpy(found)

    # --- which pieces are drawn ---

    def pieces(self) -> dict[str, np.ndarray]:
        """The columns of the training pieces, as of `held_out`."""
        return self.held_out("train")

    def held_out(self, split: str) -> dict[str, np.ndarray]:
        """Columns of the pieces of a split, style after style: name, song and genre (the style), frames, the labels of `targets`,
        and `complexity_<axis>_<feature>` of `audio.complexity`, computed once and cached."""
        clips = [self._of(split, style) for style in self.styles]
        cache, name = self.cache_dir / "statistics", self._digest() + ("" if split == "train" else f"-{split}")
        measured = rebuilding_damage(lambda: complexities(clips, cache=cache, name=name))
        return self.with_labels(split, columns_of([piece for clip in clips for piece in clip.pieces]) | measured)

    def loader_of(self, split: str, chosen: np.ndarray) -> StatefulDataLoader:
        """The segments of the chosen pieces of a split once, without augmentation. chosen: bool, for each row of `held_out`.

        Styles without a chosen piece are missing, as `may_leave_styles_out` says. If `paired`, a row is the same position of the
        same song in every other style.

        Raises: ValueError if no such row remains.
        """
        return self._evaluation(split, chosen)

    def may_leave_styles_out(self, name: str) -> None:
        """Allows the rule `name` to admit no piece of a style; the style is then missing in the batches.

        The batches then also hold {"style": int64 [s, b]}, the index of each row's style. Without this call, rules must admit at
        least one piece of each style to every batch.
        """
        self._selective.add(name)

    def _admission(self, number: int) -> list[np.ndarray]:
        counts = {style: self.num_pieces("train", style) for style in self.styles}
        return chances_of(self._rules, self._selective, counts, number)

    # --- loading ---

    @property
    def epoch_batches(self) -> int:
        """Batches of an epoch of training, on each rank."""
        least = min(sum(piece.frames for piece in self._of("train", style).pieces) for style in self.styles)
        return self._batches_for(least, row=self.segment_frames)

    def train_dataloader(self) -> StatefulDataLoader:
        """Random segments without end; an epoch is a fixed number of batches, and its state resumes within an epoch."""
        rank, world = self._place()
        clips = [self._of("train", style) for style in self.styles]
        sampler = DrawSampler(
            batch_size=self.batch_size,
            num_batches=self.epoch_batches,
            rank=rank,
            world=world,
            admission=self._admission if self._rules else None,
        )
        segments = RandomSegments(
            clips,
            styles=self.styles,
            seed=self.seed,
            segment=self.segment_frames,
            gain_db=None if self.defects is not None else self.gain_db,
            waveform=self._with_samples,
            labels=self._style_classes("train"),
            onsets=self._onsets_of("train"),
            notes=self._notes_of("train"),
        )
        if self.defects is None:
            return self._loader(segments, sampler)
        spoiler = Spoiler(self.defects, self.contract, self.gain_db)
        return self._loader(RandomGraded(segments, spoiler=spoiler, styles=self.styles, waveform=self.waveform), sampler)

    def _onsets_of(self, split: str) -> list[list[np.ndarray]] | None:
        return None if self.defects is None else [self._onsets[split, style] for style in self.styles]

    def _evaluation(self, split: str, chosen: np.ndarray | None = None) -> StatefulDataLoader:
        rank, world = self._place()
        clips = [self._of(split, style) for style in self.styles]
        notes = self._notes_of(split)
        paired = self.paired and (chosen is None or split != "train")
        rows = evaluation_rows(clips, segment=self.segment_frames, paired=paired, notes=notes, chosen=chosen)
        if chosen is not None and not rows:
            raise ValueError(f"no segment of the chosen pieces of {split} is there in every style; choose others")
        batches = evaluation_batches(rows, batch_size=self.batch_size, rank=rank, world=world)
        known: Any = {"labels": self._style_classes(split), "onsets": self._onsets_of(split), "notes": notes}
        segments = FixedSegments(clips, segment=self.segment_frames, waveform=self._with_samples, **known)
        if self.defects is None:
            return self._loader(segments, batches)
        spoiler = Spoiler(self.defects, self.contract, None, **({"recoloured": 0.0} if split == "test" else {}))
        options: Any = {"spoiler": spoiler, "styles": self.styles, "waveform": self.waveform}
        return self._loader(FixedGraded(segments, partners=partners_of(rows), **options), batches)

    def _notes_of(self, split: str) -> list[PieceNotes] | None:
        return [self._notes[split, style] for style in self.styles] if self.score else None

    # --- state ---

    def _digest(self, pieces: list[Piece] | None = None, styles: Sequence[str] | None = None) -> str:
        own = pieces if pieces is not None else self._pieces or []
        identity = [[p.key, p.style, p.split, p.start, p.stop] for p in own]
        scored = [["score", *self._instruments]] if self.score else []
        text = json.dumps([identity, self.segment_frames, styles or self._styles, self.contract.fingerprint, *scored])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def contents(self) -> list[tuple[str, str, str]]:
        """Returns (split, file, key of its samples) for each piece, and ("all", "pieces", hash of segments and mel settings)."""
        own = [self._of(split, style).pieces for split in SPLITS for style in self.styles]
        rows = sorted({(p.split, f"{p.style}/{p.name}", p.key) for pieces in own for p in pieces})
        return [*rows, ("all", "pieces", self._digest())]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to notice that the data changed; the loaders keep their own state."""
        return {"styles": list(self.styles), "contract": self.contract.fingerprint, "dataset": self._digest()}
