"""Scores and tokens that are lost from the cache come back as they were, or the run says which file is missing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from symusic import Score

from etude.data.scores import build
from etude.data.scores.corpora import Folder
from etude.data.scores.manifest import piece_keys
from etude.data.scores.module import MusicDataModule
from etude.music.score_bytes import score_to_bytes
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.data.scores.pieces import quartet, write_folder
from tests.data.scores.troubled import Troubled


def module(root: Path, cache: Path, **changes: Any) -> MusicDataModule:
    options: dict[str, Any] = {"corpus": Folder(root=str(root)), "tokenizer": SatbGrid, "cache_dir": str(cache)}
    return MusicDataModule(**{**options, "prepare_workers": 1, **changes})


def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder whose scores were then removed from the cache, and one of whose files crashes its reader."""
    root = write_folder(tmp_path / "scores", pieces=9)
    quartet(50).dump_midi(root / "crash.mid")
    monkeypatch.setenv("ETUDE_TEST_SPARED", "1")
    module(root, tmp_path / "cache", corpus=Troubled(root=str(root))).prepare()
    shutil.rmtree(build.scores_folder(tmp_path / "cache"))
    monkeypatch.delenv("ETUDE_TEST_SPARED")
    return root


def test_a_missing_piece_is_never_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = lost(tmp_path, monkeypatch), tmp_path / "cache"
    options: dict[str, Any] = {"corpus": Troubled(root=str(root))}
    told = r"reading crash\.mid again failed: .*crashed.*tries it again"
    with pytest.raises(ChildProcessError, match=told):
        module(root, cache, tokenizer=MidiTokTokenizer, **options).prepare()
    data = module(root, cache, **options)
    with pytest.raises(ChildProcessError, match=told):
        data.score("train", 0)
    with pytest.raises(ChildProcessError, match=told):
        data.pieces()
    with pytest.raises(IndexError, match="no record -1"):
        build.load_score(build.scores_folder(cache), -1)
    monkeypatch.setenv("ETUDE_TEST_SPARED", "1")
    mended, fresh = (module(root, place, tokenizer=MidiTokTokenizer, **options) for place in (cache, tmp_path / "fresh"))
    for split in ("train", "val", "test"):
        assert mended.manifest(split)["file"].to_pylist() == fresh.manifest(split)["file"].to_pylist()
        one, two = mended.view(split), fresh.view(split)
        assert [one.body(i).tolist() for i in range(len(one))] == [two.body(i).tolist() for i in range(len(two))]


def test_facts_without_scores_are_read_again(tmp_path: Path) -> None:
    root, cache = write_folder(tmp_path / "scores", pieces=6), tmp_path / "cache"
    module(root, cache).prepare()
    shutil.rmtree(build.scores_folder(cache) / "scores")
    module(root, cache, tokenizer=MidiTokTokenizer).prepare()
    data = module(root, cache)
    assert all(data.score("train", i).note_num() for i in range(len(data.manifest("train"))))


def test_scores_are_found_after_their_store_was_rebuilt_in_another_order(tmp_path: Path) -> None:
    root, cache = write_folder(tmp_path / "scores", pieces=9), tmp_path / "cache"
    corpus = Folder(root=str(root))
    sources = corpus.files()[::-1]  # as another dataset with the same files may have read them
    build.parse(corpus, sources, build.hash_files(sources, cache), cache_dir=cache, num_workers=1)
    data, splits = module(root, cache, split=(0.4, 0.3, 0.3)), ("test", "val", "train")

    def scores() -> dict[str, list[bytes]]:
        return {split: [score_to_bytes(data.score(split, i)) for i in range(len(data.manifest(split)))] for split in splits}

    before = scores()
    folder = build.scores_folder(cache)
    row = int(build.rows_of_scores(folder, piece_keys(data.manifest("train")))[0])
    start = int(build.open_scores(folder).index["start"][row])
    with (folder / "scores" / "data").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff\xff")
    data.score("train", 0)  # rebuilds the store in the order of this dataset
    assert scores() == before


def test_datasets_that_share_tokens_keep_each_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "scores", pieces=8)
    cache, less = tmp_path / "cache", tmp_path / "less"
    shutil.copytree(root, less)
    for path in sorted(less.rglob("*.mid"))[:3]:
        path.unlink()
    module(root, cache, controls=[]).prepare()
    (tokens,) = cache.glob("tokens-*")
    shutil.rmtree(tokens)
    module(less, cache, controls=[]).prepare()  # rebuilds the store with its own pieces first
    first = module(root, cache, controls=[])
    first.prepare()  # its view is out of date, the store is whole
    assert "view.json is damaged" in capsys.readouterr().err
    for place in (less, root):
        module(place, cache, controls=[]).prepare()
    assert "is rebuilt" not in capsys.readouterr().err
    for split in ("train", "val", "test"):
        view = first.view(split)
        encoded = [first.tokenizer.encode(first.score(split, int(row))) for row in view.table["row"]]
        assert [view.body(i).tolist() for i in range(len(view))] == [ids.tolist() for ids in encoded]


def test_a_lack_of_memory_while_describing_a_piece_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quartet(1).dump_midi(tmp_path / "a.mid")

    def exhaust(_: Score) -> dict[str, Any]:
        raise MemoryError

    monkeypatch.setattr("etude.data.scores.facts.describe", exhaust)
    with pytest.raises(MemoryError):
        build.read_file(Folder(root=str(tmp_path)), tmp_path / "a.mid")
