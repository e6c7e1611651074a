"""Corpora list what is there, and say in one line what to do where nothing is."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from etude.data.scores.corpora import Chorales, Composers, Corpus, Dances, Early, Everything, Folder, Folk, Jsb
from etude.data.scores.essen import TuneFamilies, UnseenRegions
from etude.data.scores.jsb import read_jsb
from etude.data.scores.module import MusicDataModule
from etude.music.score import ScoreError
from etude.tokens.satb import SatbGrid
from tests.data.scores.pieces import quartet, write_folder


@pytest.mark.parametrize(("corpus", "genres", "least"), [
    (Chorales(), {"chorales"}, 400),
    (Early(), {"early"}, 1400),
    (Folk(), {"folk"}, 1100),
    (Everything(), {"chorales", "early", "folk"}, 2900),
])  # fmt: skip
def test_the_wheel_lists_its_scores_without_parsing(corpus: Chorales, genres: set[str], least: int) -> None:
    sources = corpus.files()
    assert len(sources) >= least
    assert {source.genre for source in sources} == genres
    assert all(source.licence and "music21" in source.source for source in sources)
    assert len({source.name for source in sources}) == len(sources)


def test_folder_takes_genres_from_subfolders_and_origins_from_the_table(tmp_path: Path) -> None:
    write_folder(tmp_path, pieces=4)
    quartet(9).dump_midi(tmp_path / "loose.mid")
    (tmp_path / "notes.txt").write_text("not a score")
    (tmp_path / "SOURCES.tsv").write_text("file\tsource\tlicence\nloose.mid\ta friend\tCC0\n")
    sources = {source.name: source for source in Folder(root=str(tmp_path)).files()}
    assert len(sources) == 5
    assert sources["folk/piece000.mid"].genre == "folk"
    assert sources["loose.mid"].genre == "unknown"
    assert (sources["loose.mid"].source, sources["loose.mid"].licence) == ("a friend", "CC0")


@pytest.mark.parametrize(("root", "says"), [("", "root is empty"), ("nowhere", "not a folder"), (".", "no scores")])
def test_folder_says_what_is_missing(root: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        Folder(root=root).files()
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf8_is_printable(tmp_path: Path) -> None:
    name = b"caf\xe9.mid"
    quartet(1).dump_midi(tmp_path / "plain.mid")
    Path(tmp_path / "plain.mid").rename(tmp_path / name.decode("utf-8", "surrogateescape"))
    (source,) = Folder(root=str(tmp_path)).files()
    assert source.name == r"caf\xe9.mid"
    assert source.path.exists()


def write_jsb(path: Path, sizes: tuple[int, int, int] = (4, 2, 3)) -> Path:
    rng = np.random.default_rng(0)
    frames = [[rng.integers(50, 60, (32 + 4 * i, 4)).tolist() for i in range(size)] for size in sizes]
    path.write_text(json.dumps(dict(zip(("train", "valid", "test"), frames, strict=True))))
    return path


def test_jsb_keeps_its_split_and_every_frame(tmp_path: Path) -> None:
    path = write_jsb(tmp_path / "Jsb16thSeparated.json")
    content = json.loads(path.read_text())
    pieces = list(read_jsb(path))
    assert [split for _, split, _ in pieces] == ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    originals = [frames for split in ("train", "valid", "test") for frames in content[split]]
    tokenizer = SatbGrid()
    for (_, _, score), frames in zip(pieces, originals, strict=True):
        assert sorted(map(sorted, tokenizer.decode_frames(tokenizer.encode(score)).T.tolist())) == sorted(
            map(sorted, np.array(frames).T.tolist())
        )


def test_the_real_jsb_has_its_canonical_split_and_frames(shared_data: Path) -> None:
    (source,) = Jsb(root=str(shared_data / "jsb")).files()
    content = json.loads(source.path.read_text())
    pieces = list(read_jsb(source.path))
    assert [sum(split == name for _, split, _ in pieces) for name in ("train", "val", "test")] == [229, 76, 77]
    tokenizer = SatbGrid()
    originals = [frames for split in ("train", "valid", "test") for frames in content[split]]
    for (_, _, score), frames in zip(pieces, originals, strict=True):
        assert np.array_equal(tokenizer.encode(score), tokenizer.encode_frames(np.array(frames)))


def test_jsb_downloads_nothing_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.corpus\.download=true") as caught:
        Jsb(root=str(tmp_path)).files()
    assert str(tmp_path / "Jsb16thSeparated.json") in str(caught.value)


def test_jsb_without_a_network_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etude.data.scores.jsb.DOWNLOAD_URL", "http://127.0.0.1:9/Jsb16thSeparated.json")
    with pytest.raises(ValueError, match="could not download") as caught:
        Jsb(root=str(tmp_path / "deep" / "Jsb16thSeparated.json"), download=True).files()
    assert str(tmp_path / "deep" / "Jsb16thSeparated.json") in str(caught.value)
    assert not list(tmp_path.rglob("*.json*"))


def test_jsb_download_stores_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = write_jsb(tmp_path / "origin.json")
    monkeypatch.setattr("etude.data.scores.jsb.DOWNLOAD_URL", origin.as_uri())
    (source,) = Jsb(root=str(tmp_path / "new"), download=True).files()
    assert source.path.read_bytes() == origin.read_bytes()


def test_what_is_not_the_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"train": [[1, 2]]}')
    with pytest.raises(ScoreError, match="not the JSB benchmark"):
        list(read_jsb(tmp_path / "x.json"))


def test_composers_are_known_by_folder_and_header() -> None:
    corpus = Composers(most=60)
    files = corpus.files()
    folders = Counter(source.name.partition("/")[0] for source in files)
    assert folders["palestrina"] == folders["bach"] == 60 and folders["haydn"] == 9 and folders["mozart"] == 16
    assert [source.name for source in files] == sorted(source.name for source in files)
    assert {source.name for source in Composers(most=10).files()} < {source.name for source in files}  # a part of them
    named = {source: corpus.labels(source) for source in files}
    bach = next(source for source in files if source.name.startswith("bach/"))
    assert named[bach] == {bach.path.stem: {"composer": "Bach"}}
    early = [labels for source, labels in named.items() if source.name.startswith("trecento/")]
    told = [labels for labels in early if labels]
    assert 0 < len(told) < len(early) and {value["composer"] for labels in told for value in labels.values()} == {"Ciconia"}


def test_a_corpus_of_no_files_of_a_composer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.corpus.most=0 must be at least 1"):
        Composers(most=0).files()


@pytest.mark.parametrize("corpus", [Jsb(), TuneFamilies(), UnseenRegions(), Dances(held_out="oneills1850")])
def test_a_split_that_a_corpus_prescribes_can_not_be_asked_for(corpus: Corpus) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.split=\[0\.5, 0\.3, 0\.2\] changes nothing, since {type(corpus).__name__} says"
    ):
        MusicDataModule(corpus=corpus, tokenizer=SatbGrid, split=[0.5, 0.3, 0.2])
    MusicDataModule(corpus=corpus, tokenizer=SatbGrid, split=[0.8, 0.1, 0.1])
    MusicDataModule(corpus=Dances(), tokenizer=SatbGrid, split=[0.5, 0.3, 0.2])
