"""The runs of a listening test, each with its generated pieces and the real ones that they are compared with."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from etude.audio.files import AUDIO_SUFFIXES
from etude.core.checkpoint_files import load_checkpoint
from etude.core.checkpoint_search import find_checkpoint
from etude.music.score import SUFFIXES
from etude.report.comparison.runs import find_runs, is_run, labels
from etude.report.media import read_table
from etude.studio.held_out import held_out
from etude.studio.options import Options
from etude.studio.pieces import Piece, kinds, music_files, read_folder, read_pieces
from etude.tokens.changes import first_tempo
from etude.tokens.tokenizer import Tokenizer
from etude.wording import counted


@dataclass(frozen=True)
class Source:
    """A run whose music is compared with real music.

    Attributes:
        label: a short name, unique among the runs.
        folder: of the run, absolute.
        generated, real: its pieces, and the real ones that stand beside them.
        tokenizer: of its model, by which real scores are rounded as its own are; None if it is not known, or for audio.
        tempo_bpm: of its scores, for tokenizers that write no tempo.
        rate: sample rate of its model's audio; None if it is not known, or for scores.
    """

    label: str
    folder: Path
    generated: Sequence[Piece]
    real: Sequence[Piece]
    tokenizer: Tokenizer | None = None
    tempo_bpm: float | None = None
    rate: int | None = None

    @property
    def is_score(self) -> bool:
        """Whether scores are compared, rather than audio."""
        return self.generated[0].is_score


@dataclass(frozen=True)
class _Model:
    """What a run's checkpoint tells: its path, the tokenizer, the sample rate, the recipe; nothing without a checkpoint."""

    path: Path | None = None
    tokenizer: Tokenizer | None = None
    rate: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def find_sources(options: Options) -> list[Source]:
    """Reads the music of all runs, and the real music.

    Raises: ValueError, in one line with the remedy: no such run or folder, nothing that can be heard in it, or real and generated
        music that can't be compared.
    """
    folders = [folder.resolve() for folder in find_runs(options.runs, Path(options.outputs), least=1, accepts=_has_music)]
    real: dict[bool, list[Piece]] = {}
    real_folder = None if options.real is None else Path(options.real).expanduser()
    if real_folder is not None and not real_folder.is_dir():
        what = "that is no folder" if real_folder.exists() else "there is no such folder"
        raise ValueError(f"real={options.real}: {what}; give a folder of scores or audio")
    given = None if real_folder is None else kinds(real_folder, deep=True)
    kinds_of_runs = [_kind(folder, options.real, given) for folder in folders]
    print(f"reading the music of {counted(len(folders), 'run')} ...", file=sys.stderr)
    sources = []
    for folder, label, scores in zip(folders, labels(folders), kinds_of_runs, strict=True):
        model, generated = _model(folder), _generated(folder, label, scores=scores)
        if real_folder is None:
            found = _held_out(folder, label, model, scores=scores, seed=options.seed)
        else:
            found = real[scores] = real.get(scores) or read_folder(real_folder, scores=scores, seed=options.seed)
        _refuse_common(generated, found, label)
        sources.append(_source(label, folder, generated, found, model, scores=scores))
    return sources


def _refuse_common(generated: Sequence[Piece], real: Sequence[Piece], label: str) -> None:
    known = {piece.sha256: piece.file for piece in real}
    for piece in generated:
        if piece.sha256 in known:
            raise ValueError(f"{piece.file} of {label} and {known[piece.sha256]} of the real music are the same file; remove one")


def _source(label: str, folder: Path, generated: list[Piece], real: list[Piece], model: _Model, *, scores: bool) -> Source:
    if not scores:
        return Source(label, folder, generated, real, rate=model.rate)
    if model.tokenizer is None:
        print(
            f"{label}: its tokenizer is not known, so real scores are played as they are, not rounded to its grid",
            file=sys.stderr,
        )
    tempos: Counter[float] = Counter()
    for piece in generated:
        tempos[round(first_tempo(piece.music()), 1)] += 1
    return Source(label, folder, generated, real, tokenizer=model.tokenizer, tempo_bpm=tempos.most_common(1)[0][0])


def _has_music(folder: Path) -> bool:
    return is_run(folder) or (folder / "samples").is_dir() or bool(kinds(folder, deep=False))


def _place(folder: Path) -> Path:
    """Returns where the music of a run lies: in samples/, otherwise in the folder itself."""
    return folder / "samples" if (folder / "samples").is_dir() else folder


def _kind(folder: Path, real: str | None, given: set[bool] | None) -> bool:
    """Returns whether scores are compared (True) or audio: scores, where both sides have them.

    real, given: the folder of real music and what it holds; None for held-out pieces.

    Raises: ValueError if a side has nothing that can be heard, or the two have nothing in common.
    """
    made = kinds(_place(folder), deep=False)
    names = {True: "scores", False: "audio"}
    if not made:
        raise ValueError(
            f"runs: {folder} holds no samples; make some with `etude generate ckpt={folder} num_samples=20`, and give the folder "
            "that it writes"
        )
    if given is None:
        return True in made
    if not given:
        raise ValueError(f"real={real}: it holds no scores and no audio; give a folder that does")
    if not made & given:
        one, other = names[min(given)], names[min(made)]
        raise ValueError(
            f"real={real} holds {one}, {folder} holds {other}, and the sound alone would give the answer away; give {other} "
            "as real="
        )
    if True not in made & given and True in made:
        print(
            f"{folder}: its audio is compared, since real={real} holds no scores; a rendering may be told from a recording by "
            "its sound",
            file=sys.stderr,
        )
    return True in made & given


def _generated(folder: Path, label: str, *, scores: bool) -> list[Piece]:
    """Returns the generated pieces of a run; real ones among the samples of style transfer are left out."""
    place = _place(folder)
    genres, real = _told_by_table(place, scores=scores)
    paths = [path for path in music_files(place, SUFFIXES if scores else AUDIO_SUFFIXES, deep=False) if path.name not in real]
    pieces = read_pieces(paths, genre=lambda path: genres.get(path.name), scores=scores, told=label)
    if not pieces:
        what = "score" if scores else "audio file"
        raise ValueError(f"runs: none of {counted(len(paths), f'generated {what}')} in {place} can be read, see above")
    return pieces


def _told_by_table(place: Path, *, scores: bool) -> tuple[dict[str, str], set[str]]:
    """Returns the genre of each sample whose genre samples.csv tells, and the names of those that are real."""
    genres, real = {}, set()
    for sample in read_table(place):
        file = sample.score if scores else sample.sound
        genre = sample.values.get("asked genre") or sample.values.get("to")
        if file is not None and genre:
            genres[file.name] = str(genre)
        elif file is not None and "from" in sample.values:
            real.add(file.name)
    return genres, real


def _model(folder: Path) -> _Model:
    """Returns what is known of the model that made a run's music."""
    made_with = folder / "generate.yaml"
    ckpt = str(folder)
    if made_with.is_file():
        ckpt = str(OmegaConf.to_container(OmegaConf.load(made_with), resolve=False)["ckpt"])  # type: ignore[index,call-overload]
    elif not is_run(folder):
        return _Model()
    try:
        path = find_checkpoint(ckpt, "", option="runs", announce=False, best=True)
        saved = load_checkpoint(path)["etude"]
        tokenizer = Tokenizer.from_state(saved["tokenizer"]) if "tokenizer" in saved else None
        rate = saved.get("contract", {}).get("sample_rate")
        return _Model(path, tokenizer, None if rate is None else int(rate), saved["recipe"])
    except ValueError as error:
        print(f"{folder}: its model can't be read ({error})", file=sys.stderr)
        return _Model()


def _held_out(folder: Path, label: str, model: _Model, *, scores: bool, seed: int) -> list[Piece]:
    if model.path is None or "data" not in model.recipe:
        raise ValueError(
            f"real=null takes held-out pieces of a run's own data, and {folder} has no checkpoint that tells them; give a folder "
            "of real music, real=FOLDER"
        )
    pieces = held_out(model.path, model.recipe["data"], model.tokenizer, seed=seed)
    if not pieces or pieces[0].is_score != scores:
        raise ValueError(
            f"real=null: the data of {label} have no held-out {'scores' if scores else 'audio'}; give a folder, real=FOLDER"
        )
    return pieces
