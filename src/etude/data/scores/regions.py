"""Folk songs of the Essen collection with the region that each comes from."""

import re
from dataclasses import dataclass

from etude.data.scores.corpora import M21_LICENCE, Music21Corpus, Source
from etude.music.score import tunes

REGIONS = {
    "China": "China", "Lothringen": "Lorraine", "Luxemburg": "Luxembourg", "Hessen": "Hesse", "Schlesien": "Silesia",
    "Rheinland": "Rhineland", "Niederrhein": "Rhineland", "Westfalen": "Westphalia", "Gottschee": "Gottschee",
    "Oesterreich": "Austria",
}  # fmt: skip  # a place in the header -> region; those with the most songs, 92 and more
_ORIGIN = re.compile(r"^O:[ \t]*(.*?)\s*$", flags=re.MULTILINE)


def region(text: str) -> str | None:
    """Returns the region that the field O of a song's ABC names; None for none of them, or several."""
    field = _ORIGIN.search(text)
    places = {place.strip() for place in re.split("[,;/]", field.group(1))} if field else set()
    found = {REGIONS[place] for place in places & REGIONS.keys()}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class EssenRegions(Music21Corpus):
    """The Essen folk songs, included in music21, about 8,500 songs in 27 files; the header of 3,705 names one of nine regions.

    Files and titles name places, too; no tokenizer reads them.
    """

    collections = (("essenFolksong", "folk", "Essen folk songs, encoded under the direction of Helmut Schaffrath", M21_LICENCE),)
    label_columns = ("region",)

    def files(self) -> list[Source]:
        return [source for source in super().files() if not source.path.stem.startswith("test")]  # songs of the other files

    def labels(self, source: Source) -> dict[str, dict[str, str]]:
        found = {name: region(text) for name, text in tunes(source.path)}
        return {name: {"region": each} for name, each in found.items() if each is not None}
