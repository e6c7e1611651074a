"""Serialise scores to bytes and back, exactly. The format is plain numbers and text, so reading it can run no code.

4 bytes       length of the header, unsigned, little-endian
header        JSON: {"tpq", "globals": {list: length}, "markers": [text], "tracks": [{"name", "program", "is_drum",
              "lists": {list: length}, "lyrics": [text]}]}
columns       int32, little-endian: for each list, in the order of `GLOBALS` and then of `LISTS` for each track, one column of
              its length for each field
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from symusic import ControlChange, KeySignature, Note, Pedal, PitchBend, Score, Tempo, TextMeta, TimeSignature, Track

LENGTH = struct.Struct("<I")
INT32 = np.dtype("<i4")
FIELDS = {
    "tempos": ("time", "mspq"), "time_signatures": ("time", "numerator", "denominator"),
    "key_signatures": ("time", "key", "tonality"), "markers": ("time",),
    "notes": ("time", "duration", "pitch", "velocity"), "controls": ("time", "number", "value"),
    "pitch_bends": ("time", "value"), "pedals": ("time", "duration"), "lyrics": ("time",),
}  # fmt: skip
GLOBALS = ("tempos", "time_signatures", "key_signatures", "markers")
LISTS = ("notes", "controls", "pitch_bends", "pedals", "lyrics")
EVENTS: dict[str, Any] = {
    "tempos": Tempo, "time_signatures": TimeSignature, "key_signatures": KeySignature, "notes": Note, "controls": ControlChange,
    "pitch_bends": PitchBend, "pedals": Pedal,
}  # fmt: skip
TEXTS = ("markers", "lyrics")


def _columns(owner: Any, name: str) -> list[np.ndarray]:
    events = getattr(owner, name)
    if name in TEXTS:
        return [np.array([event.time for event in events], INT32)]
    found = events.numpy()
    return [found[field].astype(INT32) for field in FIELDS[name]]


def score_to_bytes(score: Score) -> bytes:
    """Serialises a score in ticks; `score_from_bytes` restores an equal one."""
    blocks: list[np.ndarray] = []

    def lengths(owner: Any, names: tuple[str, ...]) -> dict[str, int]:
        for name in names:
            blocks.extend(_columns(owner, name))
        return {name: len(getattr(owner, name)) for name in names}

    head = {
        "tpq": score.ticks_per_quarter,
        "globals": lengths(score, GLOBALS),
        "markers": [marker.text for marker in score.markers],
        "tracks": [
            {
                "name": track.name, "program": track.program, "is_drum": track.is_drum, "lists": lengths(track, LISTS),
                "lyrics": [lyric.text for lyric in track.lyrics],
            }
            for track in score.tracks
        ],
    }  # fmt: skip
    text = json.dumps(head).encode()
    return LENGTH.pack(len(text)) + text + b"".join(block.tobytes() for block in blocks)


def score_from_bytes(data: bytes) -> Score:
    """Restores a score from the bytes of `score_to_bytes`.

    Raises:
        ValueError: the bytes are not those of a score.
    """
    try:
        return _read(data)
    except ValueError:
        raise
    except Exception as error:  # damaged or foreign bytes can cause any exception
        raise ValueError(f"not the bytes of a score ({type(error).__name__})") from error


def _read(data: bytes) -> Score:
    (size,) = LENGTH.unpack_from(data)
    head = json.loads(data[4 : 4 + size])
    columns = np.frombuffer(bytearray(data[4 + size :]), INT32)  # symusic needs writable arrays
    at = 0

    def take(lengths: Mapping[str, Any], name: str) -> list[np.ndarray]:
        nonlocal at
        count, fields = lengths[name], FIELDS[name]
        if type(count) is not int or not 0 <= count * len(fields) <= len(columns) - at:
            raise ValueError(f"not the bytes of a score: the length of {name} is {count!r}")
        found = [columns[at + i * count : at + (i + 1) * count] for i in range(len(fields))]
        at += count * len(fields)
        return found

    score = Score(int(head["tpq"]))
    _set(score, GLOBALS, head["globals"], take, {"markers": head["markers"]})
    for node in head["tracks"]:
        track = Track(name=node["name"], program=node["program"], is_drum=node["is_drum"])
        _set(track, LISTS, node["lists"], take, {"lyrics": node["lyrics"]})
        score.tracks.append(track)
    if at != len(columns):
        raise ValueError(f"not the bytes of a score: {len(columns) - at} numbers are left over")
    return score


def _set(owner: Any, names: tuple[str, ...], lengths: Mapping[str, Any], take: Any, texts: Mapping[str, list[str]]) -> None:
    for name in names:
        found = take(lengths, name)
        if name in TEXTS:
            for time, text in zip(found[0].tolist(), texts[name], strict=True):
                getattr(owner, name).append(TextMeta(time, text))
        elif len(found[0]):
            setattr(owner, name, EVENTS[name].from_numpy(*found, "tick"))
