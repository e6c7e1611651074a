"""A folder of styles of which some are never trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from etude.data.scores.corpora import Folder, Source


@dataclass(frozen=True)
class UnseenStyles(Folder):
    """A folder whose subfolders are styles; whole styles are validation and test, all others are training.

    val, test: the names of subfolders, one at least of each.
    root, roots: see `Folder`.
    """

    val: Sequence[str] | None = None
    test: Sequence[str] | None = None

    @property
    def prescribes_split(self) -> bool:
        return True

    def files(self) -> list[Source]:
        found = super().files()
        styles = sorted({source.genre for source in found})
        named = {"val": list(self.val or ()), "test": list(self.test or ())}
        for split, names in named.items():
            if not names:
                raise ValueError(
                    f"data.corpus.{split} names no style that is left out of training; name some of {', '.join(styles)}, as in "
                    f"data.corpus.{split}=[{styles[-1]}]"
                )
            if unknown := [name for name in names if name not in styles]:
                raise ValueError(f"data.corpus.{split} names {unknown[0]}, which is no subfolder; there are {', '.join(styles)}")
        if both := sorted(set(named["val"]) & set(named["test"])):
            raise ValueError(f"data.corpus.val and data.corpus.test both name {both[0]}; a style is in one split")
        if not set(styles) - {*named["val"], *named["test"]}:
            raise ValueError("data.corpus.val and data.corpus.test name all styles; leave one at least for training")
        part_of = {name: part for part, names in named.items() for name in names}
        return [replace(source, split=part_of.get(source.genre, "train")) for source in found]
