"""A folder of the user's audio files, each with the MIDI file of what is played in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from etude.audio.files import AUDIO_SUFFIXES
from etude.data.audio.corpora import AudioCorpus, Failures
from etude.data.audio.recordings import FileRecording, Recording
from etude.data.scores import build
from etude.data.scores.corpora import Source
from etude.music.score import MIDI_SUFFIXES, printable

STYLE = "pairs"  # there is one style


@dataclass(frozen=True)
class PairedFolder(AudioCorpus):
    """Audio files and MIDI files of the same name in one folder, such as song.wav and song.mid, subfolders included.

    The notes must have the times of the sound. Renderings of one MIDI file are in the same split.

    root: the folder; '' means that it must be given.
    max_difference: seconds by which the last note's end and the end of the audio may differ; the sound may fade out after it.
    """

    root: str = ""
    max_difference: float = 5.0
    has_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.max_difference > 0:
            raise ValueError(f"corpus.max_difference={self.max_difference} must be above 0 seconds; 5 allow for a fade-out")

    def available(self) -> list[str]:
        self._root()
        return [STYLE]

    def _root(self) -> Path:
        if not self.root:
            raise ValueError("data.root is empty; give the folder of audio and MIDI files: data=paired_folder data.root=DIR")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise ValueError(f"data.root={printable(root)} is not a folder; give that of your audio and MIDI files")
        return root

    def recordings(self, styles: Sequence[str], *, cache_dir: Path, num_workers: int) -> tuple[list[Recording], Failures]:
        root = self._root()
        paths = sorted(Path(parent, name) for parent, _, names in os.walk(root) for name in names if not name.startswith("."))
        audio = _by_name([path for path in paths if path.suffix.lower() in AUDIO_SUFFIXES])
        midi = _by_name([path for path in paths if path.suffix.lower() in MIDI_SUFFIXES])
        pairs, failures = [], _lonely(root, audio, midi)
        for name in audio.keys() & midi.keys():
            if unreadable := [path for path in (audio[name][0], midi[name][0]) if not os.access(path, os.R_OK)]:
                failures.append((printable(unreadable[0].relative_to(root)), "", "can't be read; give a file that you may read"))
            else:
                pairs.append((audio[name][0], midi[name][0]))
        if not pairs:
            why = "; ".join(f"{file}: {reason}" for file, _, reason in failures[:3])
            raise ValueError(
                f"data.root={printable(root)} holds no pair of an audio and a MIDI file of the same name, such as song.wav and "
                f"song.mid; add some{f' ({why})' if why else ''}"
            )
        pairs.sort()
        hashes = [_hashes([pair[side] for pair in pairs], root, cache_dir) for side in (0, 1)]
        return [_recording(root, *pair, *digests) for pair, *digests in zip(pairs, *hashes, strict=True)], sorted(failures)


def _by_name(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path in paths:
        found.setdefault(path.with_suffix(""), []).append(path)
    return found


def _lonely(root: Path, audio: dict[Path, list[Path]], midi: dict[Path, list[Path]]) -> Failures:
    """Returns (file, piece, reason) of files without a partner, and of second files of a name."""
    failures: Failures = []
    for files, others, partner in ((audio, midi, "MIDI file"), (midi, audio, "audio file")):
        for name, paths in files.items():
            if name not in others:
                failures.append((printable(paths[0].relative_to(root)), "", f"has no {partner} of the same name; add it"))
            reason = f"another file of this name is used, {paths[0].name}; remove one of them"
            failures += [(printable(path.relative_to(root)), "", reason) for path in paths[1:]]
    return failures


def _hashes(paths: Sequence[Path], root: Path, cache_dir: Path) -> list[str]:
    return build.hash_files([Source(path, path.name, STYLE, printable(root), "unknown") for path in paths], cache_dir)


def _recording(root: Path, audio: Path, midi: Path, audio_hash: str, midi_hash: str) -> FileRecording:
    name = printable(audio.relative_to(root))
    return FileRecording(
        name=name,
        style=STYLE,
        song=printable(audio.relative_to(root).with_suffix("")),
        split="",
        group=midi_hash,
        source=printable(root),
        licence="unknown",
        path=audio,
        sha256=audio_hash,
        score_path=midi,
        score_sha256=midi_hash,
    )
