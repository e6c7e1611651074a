"""Regions of folk songs come from the field O of their headers, and never reach the tokens."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from etude.data.scores.corpora import Source
from etude.data.scores.module import MusicDataModule
from etude.data.scores.regions import REGIONS, EssenRegions, region
from etude.tokens.miditok import MidiTokTokenizer

SONG = "X:{number}\nT: {title}\nO: {origin}\nM: 3/4\nL: 1/4\nK: G\nG2B | d2d | e2c | {last} |\n\n"


@dataclass(frozen=True)
class Songs(EssenRegions):
    """Songs of a folder, all for training."""

    root: str = ""

    def files(self) -> list[Source]:
        return [Source(path, path.name, "folk", "here", "CC0", "train") for path in sorted(Path(self.root).glob("*.abc"))]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("Europa, Mitteleuropa, Deutschland, Hessen, Darmstadt", "Hesse"),
        ("Mitteleuropa, Deutschland / Frankreich, Lothringen", "Lorraine"),
        ("Europa, Mitteleuropa, Deutschland, Rheinland, Niederrhein", "Rhineland"),
        ("China, Shanbei", "China"),
        ("Europa, Hessen; Westfalen", None),  # two of them
        ("Europa, Mitteleuropa, Deutschland", None),
    ],
)
def test_a_header_names_one_region_or_none(origin: str, expected: str | None) -> None:
    assert region(SONG.format(number=1, title="Hessen", origin=origin, last="G3")) == expected


def test_the_collection_has_nine_regions_with_many_songs() -> None:
    corpus = EssenRegions()
    sources = corpus.files()
    assert len(sources) == 27 and not any("test" in source.name for source in sources)
    found = Counter(label["region"] for source in sources for label in corpus.labels(source).values())
    assert set(found) == set(REGIONS.values()) and len(found) == 9
    assert min(found.values()) >= 90 and 3600 <= sum(found.values()) <= 3800


def test_places_and_titles_do_not_reach_the_tokens(tmp_path: Path) -> None:
    """Songs that differ in their origin and title alone are the same to a network."""

    for place in ("Hessen", "China"):
        songs = [SONG.format(number=n, title=f"Lied aus {place}", origin=place, last=last) for n, last in ((1, "G3"), (2, "B3"))]
        (tmp_path / f"{place}.abc").write_text("".join(songs))
    data = MusicDataModule(
        corpus=Songs(str(tmp_path)), tokenizer=partial(MidiTokTokenizer, scheme="REMI", infill=False),
        cache_dir=str(tmp_path / "cache"), controls=[], targets=["region"], prepare_workers=1,
    )  # fmt: skip
    assert data.labels("train", "region") == ["China", "China", "Hesse", "Hesse"]
    bodies = [np.asarray(data.view("train").body(number)).tolist() for number in range(4)]
    assert bodies[:2] == bodies[2:] and bodies[0] != bodies[1]
