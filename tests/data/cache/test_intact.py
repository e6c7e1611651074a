"""A flipped bit in any file of a cache changes nothing silently: what holds it is rebuilt, or one line says so."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from etude.audio.mel import MelContract
from etude.data.audio.corpora import AudioFolder
from etude.data.audio.module import StyleDataModule
from etude.data.cache import intact
from etude.data.cache.store import Store, Writer, key_of
from etude.data.scores import build
from etude.data.scores.corpora import Folder
from etude.data.scores.manifest import piece_keys
from etude.data.scores.module import MusicDataModule
from etude.tokens.satb import SatbGrid
from tests.data.audio.files import inline, write_styles
from tests.data.scores.pieces import write_folder


@pytest.fixture(autouse=True, scope="module")
def _inline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        yield


def module(root: Path, cache: Path, **changes: Any) -> MusicDataModule:
    options: dict[str, Any] = {"corpus": Folder(root=str(root)), "tokenizer": SatbGrid, "cache_dir": str(cache)}
    return MusicDataModule(**{**options, "prepare_workers": 1, **changes})


def contents(data: MusicDataModule) -> list[Any]:
    """Everything that training can see of the data."""
    data.prepare()
    views = [data.view(split) for split in ("train", "val", "test")]
    bodies = [[view.body(i).tolist() for i in range(len(view))] for view in views]
    tables = [[view.table[name].tolist() for name in ("row", "length", "shift", "controls")] for view in views]
    columns = {name: values.tolist() for name, values in data.pieces().items()}
    scores = [build.score_to_bytes(data.score("train", i)) for i in range(len(data.manifest("train")))]
    return [bodies, tables, repr(columns), scores, data.quarantine]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Any]]:
    """A folder of scores, a complete cache of it, and what training sees of it."""
    base = tmp_path_factory.mktemp("intact")
    root = write_folder(base / "scores", pieces=8)
    return root, base / "cache", contents(module(root, base / "cache"))


def flip(path: Path, random_place: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = random_place.randrange(len(data))
    data[place] ^= 1 << random_place.randrange(8)
    path.write_bytes(bytes(data))


def test_a_flipped_bit_in_any_file_of_the_cache_is_mended(
    ready: tuple[Path, Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, cache, expected = ready
    files = [path for path in sorted(cache.rglob("*")) if path.is_file() and path.stat().st_size and path.suffix != ".log"]
    names = {path.name for path in files}
    assert {"hashes.sealed", "manifest.parquet", "data", "index", "head.json", "train.npy", "view.json", "sums.json"} <= names
    where, mended = random.Random(0), 0
    for number, path in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(cache, copy)
        flip(copy / path.relative_to(cache), where)
        capsys.readouterr()
        assert contents(module(root, copy)) == expected, path
        mended += "is rebuilt" in capsys.readouterr().err
        shutil.rmtree(copy)
    assert mended >= len(files) // 2


def test_a_file_that_is_too_short_or_gone_is_mended(ready: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    root, cache, expected = ready
    for number, name in enumerate(("tokens-*/tokens/data", "tokens-*/tokens/head.json", "datasets-*/*/manifest.parquet")):
        for gone in (False, True):
            copy = tmp_path / f"{number}{gone}"
            shutil.copytree(cache, copy)
            (path,) = copy.glob(name)
            if gone:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            assert contents(module(root, copy)) == expected, (name, gone)


def test_scores_that_were_removed_are_read_again(ready: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    root, cache, expected = ready
    shutil.copytree(cache, tmp_path / "cache")
    for folder in (tmp_path / "cache").glob("scores-*"):
        shutil.rmtree(folder)
    assert contents(module(root, tmp_path / "cache")) == expected


def test_damage_that_cannot_be_mended_is_told(
    ready: tuple[Path, Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache, _ = ready
    shutil.copytree(cache, tmp_path / "cache")
    (manifest,) = (tmp_path / "cache").glob("datasets-*/*/manifest.parquet")
    flip(manifest, random.Random(0))

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ValueError, match=r"manifest\.parquet is damaged") as told:
        module(root, tmp_path / "cache").prepare()
    assert "Permission denied" in str(told.value) and "\n" not in str(told.value)


def test_a_complete_cache_is_used_without_writing_or_locking(
    ready: tuple[Path, Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache, expected = ready
    shutil.copytree(cache, tmp_path / "cache")
    (tmp_path / "cache" / "lock").unlink(missing_ok=True)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("etude.data.scores.module.held", refuse)
    for name in ("build", "tokens"):
        monkeypatch.setattr(f"etude.data.scores.{name}.Writer", refuse)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert contents(module(root, tmp_path / "cache")) == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_files_are_hashed_again_where_the_cache_is_read_only(
    ready: tuple[Path, Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache, expected = ready
    shutil.copytree(cache, tmp_path / "cache")
    shutil.copytree(root, tmp_path / "moved")
    (tmp_path / "cache" / "hashes.sealed").unlink()

    def refuse(path: Path, _: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("etude.data.scores.build.write_aside", refuse)
    assert contents(module(root, tmp_path / "cache")) == expected


def test_no_cache_holds_a_pickle(ready: tuple[Path, Path, list[Any]]) -> None:
    _, cache, _ = ready
    for path in cache.rglob("data"):
        for record in Store(path.parent) if path.parent.name in ("scores", "facts") else ():
            assert not record.tobytes().startswith(b"\x80") and b"symusic" not in record.tobytes()


def test_a_record_of_a_store_is_checked_with_its_row(tmp_path: Path) -> None:
    with Writer(tmp_path / "s", dtype=np.uint16) as writer:
        for number in range(20):
            writer.add(key_of(number.to_bytes(16, "big")), np.full(number % 7, number), extra=(-number, number))
    Store(tmp_path / "s").check()
    where = random.Random(0)
    for name in ("data", "index", "head.json"):
        good = (tmp_path / "s" / name).read_bytes()
        for _ in range(30):
            flip(tmp_path / "s" / name, where)
            with pytest.raises(intact.Damaged):
                Store(tmp_path / "s").check()
            (tmp_path / "s" / name).write_bytes(good)


def test_flipped_bits_in_clips_are_mended(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio")

    def seen(cache: Path) -> list[Any]:
        data = StyleDataModule(
            corpus=AudioFolder(root=str(root)), contract=MelContract(n_mels=40), cache_dir=str(cache), segment_frames=8,
            prepare_workers=1, waveform=True,
        )  # fmt: skip
        data.prepare()
        found = [[data.log_mel("train", s, i).tolist() for i in range(data.num_pieces("train", s))] for s in data.styles]
        sound = [[data.samples("train", s, i).tolist() for i in range(data.num_pieces("train", s))] for s in data.styles]
        return [found, sound, data.statistics.tolist(), {name: column.tolist() for name, column in data.pieces().items()}]

    expected, where = seen(tmp_path / "cache"), random.Random(1)
    kinds = {path.suffix or path.name: path for path in sorted((tmp_path / "cache").rglob("*"))
             if path.is_file() and path.stat().st_size and path.suffix != ".log"}  # fmt: skip
    assert {".mel", ".pcm", ".npy", ".npz", "data", "index"} <= kinds.keys()
    for path in kinds.values():
        flip(path, where)
        assert seen(tmp_path / "cache") == expected, path


def test_checking_keeps_its_speed(tmp_path: Path) -> None:
    with Writer(tmp_path / "s", dtype=np.uint16) as writer:
        for number in range(2000):
            writer.add(key_of(number.to_bytes(16, "big")), np.full(5000, number % 60_000))
    start = time.perf_counter()
    Store(tmp_path / "s").check()
    assert 20e6 / (time.perf_counter() - start) > 20e6  # bytes a second; 1e9 on an idle core


def test_keys_of_a_manifest_are_those_of_the_scores(ready: tuple[Path, Path, list[Any]]) -> None:
    root, cache, _ = ready
    table: pa.Table = module(root, cache).manifest()
    assert (Store(build.scores_folder(cache) / "scores").rows(piece_keys(table)) >= 0).all()
