"""Reads the variables of a TensorFlow checkpoint without TensorFlow.

A checkpoint is an index, a sorted table of LevelDB whose values say where each variable lies, and a file of raw numbers.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOOTER, MAGIC = 48, 0xDB4775248B80FB57
TRAILER = 5  # bytes after a block: its compression, its checksum
FLOAT32 = 1  # TensorFlow's number of the type
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_variables(folder: Path | str) -> dict[str, NDArray[np.float32]]:
    """Returns the float32 variables of a checkpoint by name; variables of other types are left out.

    Args:
        folder: holds the two files `.index` and `.data-00000-of-00001`.

    Raises:
        ValueError: no such file, or not an uncompressed checkpoint of one part.

    Source: LevelDB's table format, `doc/table_format.md`; TensorFlow's `tensor_bundle.proto`.
    """
    index, data = Path(folder) / ".index", Path(folder) / ".data-00000-of-00001"
    for path in (index, data):
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; give the folder of a TensorFlow checkpoint of one part")
    table, numbers = index.read_bytes(), data.read_bytes()
    if len(table) < FOOTER or struct.unpack("<Q", table[-8:])[0] != MAGIC:
        raise ValueError(f"{index}: is no index of a TensorFlow checkpoint; give another folder")
    _, at = _varint(table, len(table) - FOOTER)  # the block of filters, offset and size, is not needed
    _, at = _varint(table, at)
    start, at = _varint(table, at)
    size, _ = _varint(table, at)
    found: dict[str, NDArray[np.float32]] = {}
    for _, handle in _entries(table, start, size, index):
        begin, after = _varint(handle, 0)
        length, _ = _varint(handle, after)
        for name, value in _entries(table, begin, length, index):
            fields = _fields(value)
            if name and fields.get(1, [0])[0] == FLOAT32:  # the entry without a name is the header
                offset, count = int(fields.get(4, [0])[0]), int(fields[5][0])
                array = np.frombuffer(numbers, "<f4", count // 4, offset)
                found[name] = array.reshape(_shape(fields[2][0])) if 2 in fields else array.reshape(())
    return found


def _entries(table: bytes, start: int, size: int, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the keys and values of a block; a key is stored without what it shares with the key before."""
    block = table[start : start + size]
    if table[start + size] != 0:
        raise ValueError(f"{path}: a block is compressed, which is not supported; give a checkpoint as TensorFlow writes it")
    (restarts,) = struct.unpack("<I", block[-4:])
    at, end, key = 0, size - 4 * (restarts + 1), b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        at += own
        yield key.decode("latin-1"), block[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """Returns the fields of a protocol buffer by number."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            width = 8 if kind == FIXED64 else 4
            value, at = message[at : at + width], at + width
        found.setdefault(number, []).append(value)
    return found


def _shape(message: int | bytes) -> tuple[int, ...]:
    assert isinstance(message, bytes)
    sizes = [_fields(part).get(1, [0])[0] for part in _fields(message).get(2, []) if isinstance(part, bytes)]
    return tuple(int(size) for size in sizes)
