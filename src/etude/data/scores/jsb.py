"""The JSB chorale benchmark: download its file and convert its frames to scores.

Source: Boulanger-Lewandowski, Bengio and Vincent (2012), split as in Allan and Williams (2005); 16th-note version of the
JSB-Chorales-dataset repository.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.durable import write_durably
from etude.music.notation import TICKS_PER_QUARTER
from etude.music.score import ScoreError

DOWNLOAD_URL = "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/master/Jsb16thSeparated.json"
STEPS_PER_BEAT = 4
VOICES = ("Soprano", "Alto", "Tenor", "Bass")
CHOIR_AAHS = 52
TEMPO_BPM = 80.0  # for listening; the file has no tempo
SPLITS = {"train": "train", "valid": "val", "test": "test"}
TIMEOUT_SECONDS = 30


def download_jsb(path: Path) -> None:
    """Downloads the benchmark file to `path` (about 3 MB), completely or not at all.

    Raises: ValueError without a network, which says where to put the file by hand, or if the download is not the file.
    """
    try:
        with urllib.request.urlopen(DOWNLOAD_URL, timeout=TIMEOUT_SECONDS) as answer:
            data = answer.read()
        if set(json.loads(data)) != set(SPLITS):
            raise ValueError(f"the file at {DOWNLOAD_URL} is not the benchmark; put Jsb16thSeparated.json at {path} by hand")
        write_durably(path, data)
    except (urllib.error.URLError, TimeoutError, json.JSONDecodeError) as error:
        raise ValueError(
            f"could not download {DOWNLOAD_URL} ({error}); get Jsb16thSeparated.json on a machine "
            f"with a network and put it at {path}"
        ) from error


def read_jsb(path: Path) -> Iterator[tuple[str, str, Score]]:
    """Yields (name such as 'train/007', split, score of four voices) for the 382 chorales.

    Raises: ScoreError if the file is not the JSON of the benchmark.
    """
    remedy = "give the Jsb16thSeparated.json of the JSB-Chorales-dataset repository"
    try:
        chorales = json.loads(path.read_bytes())
        named = [(split, i, np.asarray(frames)) for split in SPLITS for i, frames in enumerate(chorales[split])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScoreError(path, f"not the JSB benchmark ({type(error).__name__}: {error})", remedy) from error
    for split, number, frames in named:
        if frames.ndim != 2 or frames.shape[1] != len(VOICES):
            raise ScoreError(path, f"{split} {number} has shape {frames.shape}, not [T, 4]", remedy)
        yield f"{split}/{number:03d}", SPLITS[split], score_of_frames(frames)


def score_of_frames(frames: np.ndarray) -> Score:
    """Converts frames [T, 4] of MIDI pitches (-1: rest), soprano to bass, to a score; a run of one pitch is one note."""
    step = TICKS_PER_QUARTER // STEPS_PER_BEAT
    score = Score(TICKS_PER_QUARTER)
    score.tempos.append(Tempo(0, qpm=TEMPO_BPM))
    score.time_signatures.append(TimeSignature(0, 4, 4))
    for voice, name in enumerate(VOICES):
        column = frames[:, voice]
        edges = np.flatnonzero(np.diff(column)) + 1
        starts, ends = np.append(0, edges), np.append(edges, len(column))
        track = Track(name=name, program=CHOIR_AAHS)
        for start, end, pitch in zip(starts.tolist(), ends.tolist(), column[starts].tolist(), strict=True):
            if pitch >= 0:
                track.notes.append(Note(start * step, (end - start) * step, int(pitch), 80))
        score.tracks.append(track)
    return score
