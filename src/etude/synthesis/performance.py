"""A performance in one go: a piece is generated or read, played by a synthesis model, and restyled by a transfer model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from symusic import Score
from torch import Tensor

from etude.core.protocols import Composes
from etude.core.score_protocols import PlaysScores
from etude.music.score import read_score
from etude.synthesis.sound import checked_output, play_score
from etude.transfer.restyle import restyle


def perform(
    *,
    task: PlaysScores,
    vocoder: Callable[..., Tensor],
    folder: Path,
    translator: Any = None,
    restyling_vocoder: Any = None,
    composer: Composes | None = None,
    score: str | None = None,
    style: str | None = None,
    source: str | None = None,
    intensity: float = 1.0,
    num_bars: int | None = 8,
    temperature: float = 0.9,
    seed: int = 0,
    output: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Plays a score, or a new piece, in a style.

    Args:
        task: a trained model of task=synthesis. vocoder: for its mel contract.
        folder: the run's folder, which gets score.mid, played.wav, the sound before restyling, and played.png.
        translator: a trained model of task=style_transfer, needed for a style. restyling_vocoder: for its mel contract.
        composer: a trained model that generates a piece, needed without a score.
        score: a file; None to generate a piece.
        style: one of the translator's styles; None leaves the sound as it is played.
        source: the style that the played sound counts as; None for the nearest.
        intensity: of restyling, in [0, 1].
        num_bars, temperature, seed: of a generated piece; num_bars None: the composer decides.
        output: a .wav, .flac, .ogg or .mp3 file; None: performance.wav in `folder`.
        overwrite: whether an existing file is replaced.

    Returns:
        The file written.

    Raises:
        ValueError: a score, a style or an output that can't be used, or an option that would do nothing.
    """
    if style is None and (source is not None or intensity != 1.0):
        raise ValueError("source= and intensity= are of restyling; give style=NAME too, or leave them out")
    if score is not None and (num_bars, temperature, seed) != (8, 0.9, 0):
        raise ValueError("num_bars=, temperature= and seed= are of a generated piece; leave them out, or leave score= out")
    out = checked_output(output, folder / "performance.wav", overwrite=overwrite)
    if style is not None and style not in translator.styles:
        raise ValueError(f"style={style} is unknown; the transfer model knows {', '.join(translator.styles)}; give one of these")
    music = read_score(Path(score).expanduser()) if score is not None else _composed(composer, num_bars, temperature, seed)
    music.dump_midi(folder / "score.mid")
    if style is None:
        return play_score(task, vocoder, music, out, folder=folder)
    played = play_score(task, vocoder, music, folder / "played.wav", folder=folder)
    restyle(
        task=translator, vocoder=restyling_vocoder, folder=folder, input=str(played), output=str(out), style=style, source=source,
        intensity=intensity, overwrite=overwrite,
    )  # fmt: skip
    return out


def _composed(composer: Composes | None, num_bars: int | None, temperature: float, seed: int) -> Score:
    if composer is None:
        raise ValueError("there is neither a score nor a model that generates one; give score=my.mid")
    (piece,) = composer.sample(num_samples=1, num_bars=num_bars, temperature=temperature, seed=seed)
    print("generated a piece", file=sys.stderr)
    found: Score = piece
    return found
