"""Labels of pieces: the manifest's columns and a user's file, as classes in batches, up to a trained classifier."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.measuring import Measure, Measured
from etude.core.task import Task
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.transformer import Transformer
from etude.tokens.satb import SatbGrid
from etude.tokens.tokenizer import Tokenizer
from tests.data.audio.files import module, write_styles
from tests.songs import write_songs
from tests.toys import same, trainer, weights


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs") / "songs", count=16)


def music(songs: Path, **options: Any) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=SatbGrid, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=256,
        batch_size=2, batches_per_epoch=6, prepare_workers=1, split=(0.6, 0.3, 0.1), seed=1, controls=[], **options,
    )  # fmt: skip


class Classifier(Task):
    """Tells several labels of each document from its tokens: one head each, over one encoder that sees both ways."""

    example_axis = 0

    def __init__(self, *, tokenizer: Tokenizer, labels: Mapping[str, tuple[str, ...]], **options: Any) -> None:
        super().__init__(**options)
        self.encoder = Transformer(
            vocab_size=len(tokenizer), dim=32, num_layers=1, num_heads=2, feature_sizes=tokenizer.feature_sizes, causal=False
        )
        self.heads = nn.ModuleDict({name: nn.Linear(32, len(names)) for name, names in labels.items()})

    def _told(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        features = {name.removeprefix("feature_"): batch[name] for name in batch if name.startswith("feature_")}
        hidden = self.encoder.hidden(batch["tokens"], documents_bt=batch["documents"], features=features)
        return {name: (head(hidden).flatten(0, 1), batch[f"label_{name}"].flatten()) for name, head in self.heads.items()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {name: F.cross_entropy(logits, labels, ignore_index=-1) for name, (logits, labels) in self._told(batch).items()}

    def measures(self) -> tuple[Measure, ...]:
        return tuple(Measure(f"{name}_accuracy", "share", higher_is_better=True) for name in self.heads)

    def measure(self, batch: Batch) -> dict[str, Measured]:
        found = {}
        for name, (logits, labels) in self._told(batch).items():
            right, count = ((logits.argmax(-1) == labels) & (labels >= 0)).sum(), (labels >= 0).sum()
            found[f"{name}_accuracy"] = Measured(right / count.clamp(min=1), count)
        return found


def classifier(data: MusicDataModule) -> Classifier:
    torch.manual_seed(0)
    return Classifier(tokenizer=data.tokenizer, labels=data.parts["labels"], optimizer=partial(torch.optim.AdamW, lr=1e-2))


def test_batches_hold_the_classes_of_their_pieces(songs: Path) -> None:
    data = music(songs, targets=["genre", "key"])
    names = data.parts["labels"]
    assert names["genre"] == ("classical", "folk")
    assert set(names) == {"genre", "key"} and len(names["key"]) > 1
    for split, loader in (("train", data.train_dataloader()), ("val", data.val_dataloader())):
        manifest = data.manifest(split)
        assert data.labels(split, "key") == manifest["key"].to_pylist()
        batch = next(iter(loader))
        for column in ("genre", "key"):
            values = manifest[column].to_pylist()
            for piece, label in zip(batch["piece"].flatten().tolist(), batch[f"label_{column}"].flatten().tolist(), strict=True):
                expected = -1 if piece < 0 or values[piece] not in names[column] else names[column].index(values[piece])
                assert label == expected


def test_without_targets_batches_are_what_they_were(songs: Path) -> None:
    assert "labels" not in music(songs).parts
    assert not [name for name in next(iter(music(songs).train_dataloader())) if name.startswith("label_")]


def test_two_heads_learn_and_resume_bit_for_bit(songs: Path, tmp_path: Path) -> None:
    data = music(songs, targets=["genre", "key"])
    whole = classifier(data)
    run = trainer(tmp_path, max_steps=12)
    run.fit(whole, datamodule=data)
    assert {"val/genre_accuracy", "val/key_accuracy"} <= set(run.callback_metrics)
    with torch.no_grad():
        first, last = (task.losses(next(iter(data.train_dataloader()))) for task in (classifier(data).eval(), whole.eval()))
    assert all(last[name] < first[name] for name in ("genre", "key"))
    keep = [
        ModelCheckpoint(tmp_path / name, filename="half", every_n_train_steps=5, save_top_k=-1) for name in ("first", "second")
    ]
    trainer(tmp_path, max_steps=5, callbacks=keep[:1]).fit(classifier(data), datamodule=music(songs, targets=["genre", "key"]))
    resumed, again = classifier(data), music(songs, targets=["genre", "key"])
    run = trainer(tmp_path, max_steps=12, callbacks=keep[1:])
    run.fit(resumed, datamodule=again, ckpt_path=tmp_path / "first" / "half.ckpt", weights_only=False)
    assert same(weights(whole), weights(resumed))


def written(songs: Path, folder: Path, change: Callable[[list[str]], list[str]] = lambda lines: lines) -> str:
    files = sorted(set(music(songs).manifest()["file"].to_pylist()))
    lines = ["file,composer,dance", *(f"{name},{'Ann' if number % 3 else 'Bea'}," for number, name in enumerate(files))]
    (folder / "labels.csv").write_text("\n".join(change(lines)) + "\n")
    return str(folder / "labels.csv")


def test_a_users_file_gives_labels(songs: Path, tmp_path: Path) -> None:
    data = music(songs, targets=["composer"], labels_file=written(songs, tmp_path))
    assert data.parts["labels"] == {"composer": ("Ann", "Bea")}
    files = sorted(set(data.manifest()["file"].to_pylist()))
    expected = ["Ann" if files.index(name) % 3 else "Bea" for name in data.manifest("val")["file"].to_pylist()]
    assert data.labels("val", "composer") == expected
    assert data.labels("val", "dance") == [None] * len(expected)
    assert "label_composer" in next(iter(data.val_dataloader()))
    with pytest.raises(ValueError, match="no training piece has a dance"):
        _ = music(songs, targets=["dance"], labels_file=written(songs, tmp_path)).parts


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [*lines, "nowhere/x.mid,Ann,"], "nowhere/x.mid is not among the data"),
        (lambda lines: lines[:-1], "has no line; add one"),
        (lambda lines: [*lines, lines[-1]], "is named twice; keep one line"),
        (lambda lines: ["piece" + lines[0][4:], *lines[1:]], "it needs a column 'file'"),
        (lambda lines: [lines[0].replace("dance", "genre"), *lines[1:]], "its column 'genre' exists already"),
        (lambda lines: [*lines[:-1], lines[-1] + ",x"], "has more or fewer cells than the header"),
        (lambda lines: [*lines[:-1], lines[-1].rpartition(",")[0]], "has more or fewer cells than the header"),
        (lambda lines: [], "its header is"),
    ],
)
def test_a_users_file_that_does_not_fit_is_told_in_one_line(
    songs: Path, tmp_path: Path, change: Callable[[list[str]], list[str]], told: str
) -> None:
    path = written(songs, tmp_path, change)
    with pytest.raises(ValueError, match=told) as caught:
        _ = music(songs, targets=["composer"], labels_file=path).parts
    assert f"data.labels_file={path}" in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_columns_are_told(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'polka' for labels; there are .*genre.*: set heads or data.targets"):
        _ = music(songs, targets=["polka"]).parts
    for column in ("duration_beats", "bars", "programs"):
        with pytest.raises(ValueError, match=f"'{column}' holds numbers such as .*choose a column of names"):
            _ = music(songs, targets=[column]).parts
    with pytest.raises(ValueError, match="there is no such file"):
        _ = music(songs, targets=["genre"], labels_file=str(tmp_path / "none.csv")).parts
    with pytest.raises(ValueError, match="split=tset is unknown"):
        music(songs).labels("tset", "genre")


def test_a_key_that_augmentation_changes_is_refused(songs: Path) -> None:
    with pytest.raises(ValueError, match=r"names key, which data.transpose=\(-2, 2\) changes.*data.transpose=null"):
        music(songs, targets=["key"], transpose=[-2, 2])
    data = music(songs, targets=["key"])
    data.vary(transpose=[-2, 2])  # as a technique may
    with pytest.raises(ValueError, match="targets names key"):
        data.train_dataloader()


def test_audio_has_labels_of_the_users_file(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio")
    plain = module(root, tmp_path / "cache")
    names = [name for split in ("train", "val", "test") for name in plain.manifest(split)["name"].to_pylist()]
    composers = {name: "ABC"[number % 3] for number, name in enumerate(sorted(names))}
    lines = ["file,composer", *(f"{name},{composer}" for name, composer in composers.items())]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    data = module(root, tmp_path / "cache", targets=["composer", "style"], labels_file=str(tmp_path / "labels.csv"))
    assert data.parts["labels"] == {"composer": ("A", "B", "C"), "style": ("folk", "rock")}
    for split in ("train", "val"):
        pieces = [data.piece(split, style, i).name for style in data.styles for i in range(data.num_pieces(split, style))]
        assert data.labels(split, "composer") == [composers[name] for name in pieces]
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert batch["label_composer"].shape == batch["mel"].shape[:2] and (batch["label_composer"] >= 0).all()
        assert torch.equal(batch["label_style"], torch.tensor([[0], [1]]).expand(batch["mel"].shape[:2]))
    held_out = data.val_dataloader()
    places = [row for rows in held_out.batch_sampler for row in rows]  # of each style: piece, first frame
    found = torch.cat([batch["label_composer"] for batch in held_out], dim=1)
    for style, classes in zip(data.styles, found.tolist(), strict=True):
        told = [composers[data.piece("val", style, row[data.styles.index(style)][0]).name] for row in places]
        assert ["ABC"[number] for number in classes] == told
