"""Assign clips to the training, validation and test splits, by file and not by segment."""

import collections
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from etude.audio.files import CLIPPED_SHARE
from etude.data.audio.build import clip_key
from etude.data.audio.recordings import Recording
from etude.data.scores.manifest import SPLITS

SHARED = ("name", "style", "song", "split", "group", "source", "licence")  # fields that a piece copies from its recording
MIN_TRAIN_SHARE = 0.5  # of the requested share of frames; below it, long files went to the other splits


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Frames `start` to `stop` of a clip: a whole recording, or a part of one."""

    name: str
    style: str
    song: str
    split: str
    group: str
    source: str
    licence: str
    key: str
    start: int
    stop: int

    @property
    def frames(self) -> int:
        """Its number of frames."""
        return self.stop - self.start


def pieces_of(pieces: Sequence[Piece], split: str, style: str) -> list[Piece]:
    """Returns the pieces of a split and style, sorted by song, so that paired styles have the same order."""
    return sorted((p for p in pieces if (p.split, p.style) == (split, style)), key=lambda p: (p.song, p.name, p.start))


def columns_of(pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
    """Returns what phases and rules can choose pieces by: name, song, genre (the style) and frames of each piece."""
    return {
        "name": np.array([p.name for p in pieces]),
        "song": np.array([p.song for p in pieces]),
        "genre": np.array([p.style for p in pieces]),
        "frames": np.array([p.frames for p in pieces]),
    }


def usable(
    recordings: Sequence[Recording], facts: Sequence[dict[str, Any]], *, segment: int, frame_seconds: float
) -> tuple[list[Piece], list[tuple[str, str, str]], list[str]]:
    """Returns pieces of at least a segment, (file, piece, reason) of unusable recordings, and lines about clipped pieces.

    facts: the result of `encode_all` for the recordings. segment: frames of a segment. frame_seconds: seconds per frame.
    """
    pieces, failures, clipping = [], [], []
    for recording, fact in zip(recordings, facts, strict=True):
        if "reason" in fact:
            failures.append((recording.name, "", fact["reason"]))
        elif fact["frames"] < segment:
            failures.append((recording.name, "", f"shorter than a segment ({segment * frame_seconds:.2f} s)"))
        else:
            about = {name: getattr(recording, name) for name in SHARED}
            pieces.append(Piece(**about, key=clip_key(recording), start=0, stop=fact["frames"]))
            if fact["clipped"] > CLIPPED_SHARE:
                clipping.append(f"{recording.name} ({100 * fact['clipped']:.1f} % of its samples)")
    return pieces, failures, clipping


def chosen_styles(wanted: Sequence[str] | None, available: Sequence[str], *, least: int, where: str) -> tuple[str, ...]:
    """Returns the styles to use: those that are wanted, or all.

    where: the place of the audio, for messages.
    Raises: ValueError for an unknown style, one that is named twice, or fewer than `least`.
    """
    chosen = tuple(available if wanted is None else wanted)
    if unknown := [style for style in chosen if style not in available]:
        raise ValueError(f"styles={list(chosen)}: {unknown[0]!r} is not there; there are {', '.join(available) or 'none'}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"styles={list(chosen)} names a style twice; name each once")
    if len(chosen) < least:
        place = where if wanted is None else f"styles={list(chosen)}"
        remedy = "put the audio of each style into a subfolder of its own" if len(available) < 2 else "name more in styles=[...]"
        raise ValueError(
            f"{place}: at least {least} styles are needed, and here are {len(chosen)} ({', '.join(chosen) or 'none'}); {remedy}"
        )
    return chosen


def refuse_empty(pieces: Sequence[Piece], styles: Sequence[str], quarantine: Sequence[tuple[str, str, str]]) -> None:
    """Raises ValueError, with the reasons, for a style without a piece."""
    for style in styles:
        if not any(piece.style == style for piece in pieces):
            alone = len(styles) == 1
            own = [(file, reason) for file, _, reason in quarantine if alone or file.split("/")[0] == style or "/" not in file]
            why = [f"{file}: {reason}" for file, reason in own]
            raise ValueError(f"{style} has no usable audio ({'; '.join(why[:3])}); add files, or choose others: styles=[...]")


def is_paired(pieces: Sequence[Piece], styles: Sequence[str]) -> bool:
    """Whether val and test have the same songs in every style, each once and from its beginning."""
    if any(piece.start > 0 and piece.split != "train" for piece in pieces):
        return False
    for split in SPLITS[1:]:
        songs = [sorted(p.song for p in pieces if (p.split, p.style) == (split, style)) for style in styles]
        if not songs[0] or any(other != songs[0] for other in songs) or len(set(songs[0])) < len(songs[0]):
            return False
    return True


def same_songs(pieces: Sequence[Piece], styles: Sequence[str]) -> bool:
    """Whether all styles have the same songs, each once."""
    songs = [sorted(piece.song for piece in pieces if piece.style == style) for style in styles]
    return len(styles) > 1 and len(set(songs[0])) == len(songs[0]) and all(other == songs[0] for other in songs)


def whole_songs(pieces: Sequence[Piece], styles: Sequence[str]) -> list[Piece]:
    """Returns the pieces without held-out songs that are missing in some style; for corpora that prescribe the splits."""
    count = collections.Counter((piece.split, piece.song) for piece in pieces)
    return [piece for piece in pieces if piece.split == "train" or count[piece.split, piece.song] == len(styles)]


def assign(
    pieces: Sequence[Piece],
    styles: Sequence[str],
    ratios: dict[str, float],
    *,
    segment: int,
    gap: int,
    frame_seconds: float,
    by_song: bool,
) -> tuple[list[Piece], list[str]]:
    """Assigns a split to each piece by a hash of its group.

    Groups move to training while a style has too little for it. If a style has fewer groups than splits, or its long files
    would leave too little nevertheless, all its pieces are used for training except the end of the longest one. Pieces of a
    group (equal files and, with `by_song`, files of the same name) get the same split. Adding files hardly changes the splits
    of others.

    ratios: split -> share.
    segment: smallest number of frames of a piece.
    gap: frames that are left out between parts of a piece.
    frame_seconds: seconds per frame, for messages.
    Returns: the pieces, some of them cut into parts, and messages for the user.
    Raises: ValueError for a style with too little audio to hold some out.
    """
    groups = _united(pieces, by_song=by_song)
    place = {group: int(hashlib.sha256(group.encode()).hexdigest()[:13], 16) / 16**13 for group in set(groups)}
    wanted = [name for name in SPLITS if ratios[name] > 0]
    members = {style: sorted({g for g, p in zip(groups, pieces, strict=True) if p.style == style}) for style in styles}
    chosen = _by_hash(place, ratios)
    for style in styles:
        _fill_empty(chosen, place, members[style], wanted, ratios)
    for style in styles:
        frames = collections.Counter[str]()
        for group, piece in zip(groups, pieces, strict=True):
            if piece.style == style:
                frames[group] += piece.frames
        enough = _fill_training(chosen, place, frames, least=MIN_TRAIN_SHARE * ratios["train"] * frames.total())
        if len(frames) < len(wanted) or not enough:
            chosen |= dict.fromkeys(frames, "train")
    result = [replace(piece, split=chosen[group]) for piece, group in zip(pieces, groups, strict=True)]
    lines = []
    for style in styles:
        missing = [name for name in wanted if not any(p.style == style and p.split == name for p in result)]
        if missing:
            result, line = _end_held_out(result, style, missing, ratios, segment=segment, gap=gap, frame_seconds=frame_seconds)
            lines.append(line)
    return result, lines


def _united(pieces: Sequence[Piece], *, by_song: bool) -> list[str]:
    """Returns the group of each piece: the smallest name among all pieces that are connected with it."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for piece in pieces:
        if by_song:
            low, high = sorted((root(f"file {piece.group}"), root(f"song {piece.song}")))
            parent[high] = low
    return [root(f"file {piece.group}") for piece in pieces]


def _by_hash(place: dict[str, float], ratios: dict[str, float]) -> dict[str, str]:
    chosen = {}
    for group, at in place.items():
        end = 0.0
        for name in SPLITS:
            end += ratios[name]
            if at < end and ratios[name] > 0:
                break
        chosen[group] = name if ratios[name] > 0 else "train"
    return chosen


def _fill_empty(
    chosen: dict[str, str], place: dict[str, float], members: list[str], wanted: list[str], ratios: dict[str, float]
) -> None:
    """Moves into each empty split of a style the group with the nearest hash, from a split with several groups."""
    ends = {name: sum(ratios[other] for other in SPLITS[: SPLITS.index(name) + 1]) for name in SPLITS}
    for name in wanted:
        count = collections.Counter(chosen[group] for group in members)
        movable = [group for group in members if count[chosen[group]] > 1]
        if count[name] == 0 and movable:
            middle = ends[name] - ratios[name] / 2
            chosen[min(movable, key=lambda group: (abs(place[group] - middle), group))] = name


def _fill_training(chosen: dict[str, str], place: dict[str, float], frames: dict[str, int], *, least: float) -> bool:
    """Moves groups of the lowest hashes to training while it has too few frames and their split has another group.

    frames: group -> frames, of one style. Returns: whether training has at least `least` frames then.
    """
    for group in sorted(frames, key=lambda group: (place[group], group)):
        if sum(count for other, count in frames.items() if chosen[other] == "train") >= least:
            return True
        if sum(chosen[other] == chosen[group] for other in frames) > 1:
            chosen[group] = "train"
    return sum(count for other, count in frames.items() if chosen[other] == "train") >= least


def _end_held_out(
    pieces: list[Piece],
    style: str,
    missing: list[str],
    ratios: dict[str, float],
    *,
    segment: int,
    gap: int,
    frame_seconds: float,
) -> tuple[list[Piece], str]:
    """Cuts off the end of a style's longest training piece for the splits without a piece of this style."""
    own = [piece for piece in pieces if piece.style == style and piece.split == "train"]
    longest = max(own, key=lambda piece: (piece.frames, piece.name))
    total = sum(piece.frames for piece in own)
    sizes = {name: max(segment, min(round(ratios[name] * total), longest.frames // 4)) for name in missing}
    left = longest.frames - sum(sizes.values()) - gap * len(sizes)
    if left < segment:
        raise ValueError(
            f"{style} has too little audio to hold some out: its longest file, {longest.name}, lasts "
            f"{longest.frames * frame_seconds:.1f} s and needs {(longest.frames - left + segment) * frame_seconds:.1f}; "
            "add files, or give a smaller data.segment_frames"
        )
    parts, stop = [], longest.stop
    for name in reversed(missing):
        parts.append(replace(longest, split=name, start=stop - sizes[name], stop=stop))
        stop -= sizes[name] + gap
    parts.append(replace(longest, stop=stop))
    rest = [piece for piece in pieces if piece is not longest]
    line = f"{style} has few or very long files: the end of {longest.name} is held out for {' and '.join(missing)}"
    return [*rest, *reversed(parts)], line
