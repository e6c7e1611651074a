"""Encode recordings into cached clips, mono samples and log mels, in parallel and safe against crashes and Ctrl-C.

A clip is two files of plain numbers, memory-mapped when read:

    <key>.pcm   int16 [n], samples at the contract's rate, in units of 1/32768
    <key>.mel   float16 [f, m], natural-log mels of those samples, frame by frame

and a record in the store `facts`, which is written last: a clip without a record does not count. A recording that failed
has a record with the reason, so that it is not tried again.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.audio.files import FULL_SCALE, LOUDEST, SILENCE, too_loud
from etude.audio.mel import MelContract
from etude.data.audio.recordings import Recording
from etude.data.cache import pool
from etude.data.cache.fill import absent, fill
from etude.data.cache.intact import Damaged, checksum
from etude.data.cache.lock import held
from etude.data.cache.store import FULL, Store, Writer, key_of, named
from etude.data.cache.version import MELS

FORMAT = 2  # version of the clip files; count up when their content changes
UNIT = 32768  # stored value of a sample of 1.0
FRAMES_AT_ONCE = 1024


def clips_folder(cache_dir: Path, contract: MelContract) -> Path:
    """The folder of the clips of a contract."""
    return cache_dir / f"audio-{contract.fingerprint}-{MELS}-{FORMAT}"


def clip_key(recording: Recording) -> str:
    """Returns 32 hex digits that name the clip of a recording."""
    return hashlib.sha256(recording.identity.encode()).hexdigest()[:32]


def clip_path(folder: Path, key: str, suffix: str) -> Path:
    """The file of a clip, `suffix` 'pcm' or 'mel'."""
    return folder / key[:2] / f"{key}.{suffix}"


def encode_all(
    recordings: Sequence[Recording], contract: MelContract, *, cache_dir: Path, num_workers: int
) -> list[dict[str, Any]]:
    """Encodes the recordings that are missing in the cache and returns the facts of each recording's clip.

    Facts are samples, frames and clipped (share of samples at full scale), or the reason why there is no clip.

    Raises: OSError for a full disk; KeyboardInterrupt after saving finished work.
    """
    folder = clips_folder(cache_dir, contract)
    keys = np.array([key_of(bytes.fromhex(clip_key(recording))) for recording in recordings])
    if absent(folder / "facts", keys):
        with held(cache_dir):
            _encode_absent(recordings, keys, contract, folder=folder, cache_dir=cache_dir, num_workers=num_workers)
    store = Store(folder / "facts")
    rows = store.rows(keys)
    store.check(rows)
    facts = [json.loads(store[row].tobytes()) for row in rows.tolist()]
    for recording, fact in zip(recordings, facts, strict=True):
        _check_clip(folder, clip_key(recording), fact)
    return facts


def _check_clip(folder: Path, key: str, fact: dict[str, Any]) -> None:
    """Verifies the checksums of a clip, at about 1 GB/s.

    Raises: Damaged, which names the facts as the folder to remove, since clips without facts do not count.
    """
    for suffix, value in fact.get("crc32", {}).items():
        path = clip_path(folder, key, suffix)
        if not path.is_file() or checksum(path) != value:
            why = "its checksum differs" if path.is_file() else "it is missing"
            raise Damaged(path, remove=folder / "facts", why=why)


def _encode_absent(
    recordings: Sequence[Recording],
    keys: np.ndarray,
    contract: MelContract,
    *,
    folder: Path,
    cache_dir: Path,
    num_workers: int,
) -> None:
    for leftover in folder.glob("*/*.aside"):  # of killed processes; we hold the lock, so no other process uses them
        leftover.unlink()
    with Writer(folder / "facts", dtype=np.uint8) as writer:
        todo = absent(folder / "facts", keys)

        def keep(index: int, result: Any) -> None:
            if isinstance(result, pool.Failure):
                pool.check_final(result, f"encoding {recordings[todo[index]].name}")
                result = {"reason": result.reason}
            if "full_disk" in result:
                raise named(OSError(result["full_disk"], "the disk is full"), folder)
            writer.add(keys[todo[index]], json.dumps(result).encode())

        fill(
            functools.partial(encode, contract, folder),
            [recordings[row] for row in todo],
            keep,
            writer.commit,
            title="encoding audio",
            unit="recordings",
            cache_dir=cache_dir,
            num_workers=num_workers,
        )


def encode(contract: MelContract, folder: Path, recording: Recording) -> dict[str, Any]:
    """Writes the clip of one recording block by block and returns its facts. Runs in a worker process.

    Raises: ValueError for a recording that can't be decoded or is silent.
    """
    key = clip_key(recording)
    pcm, mel = (clip_path(folder, key, suffix) for suffix in ("pcm", "mel"))
    asides = [path.with_name(f"{path.name}.{os.getpid()}.aside") for path in (pcm, mel)]
    try:
        pcm.parent.mkdir(parents=True, exist_ok=True)
        facts = _write_samples(recording, contract.sample_rate, asides[0])
        facts["frames"] = contract.num_frames(facts["samples"])
        with asides[1].open("wb") as file:
            for mel_fm in _mel_blocks(contract, asides[0], facts["samples"]):
                file.write(mel_fm.tobytes())
            _sync(file)
        facts["crc32"] = {path.suffix[1:]: checksum(aside) for path, aside in zip((pcm, mel), asides, strict=True)}
        asides[0].replace(pcm)
        asides[1].replace(mel)
    except OSError as error:
        if error.errno in FULL:
            return {"full_disk": error.errno}
        raise
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)
    return facts


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_samples(recording: Recording, sample_rate: int, path: Path) -> dict[str, Any]:
    peak, count, clipped = 0.0, 0, 0
    with path.open("wb") as file:
        for block_n in recording.blocks(sample_rate):
            if not np.isfinite(block_n).all():
                raise ValueError("has samples that are NaN or infinite; export it again")
            loud_n = np.abs(block_n)
            peak, count = max(peak, float(loud_n.max(initial=0.0))), count + len(block_n)
            clipped += int((loud_n >= FULL_SCALE).sum())
            file.write(quantise(block_n).tobytes())
        _sync(file)
    if count == 0:
        raise ValueError("has no samples; export it again")
    if peak > LOUDEST:
        raise ValueError("; ".join(too_loud(peak)))
    if peak < SILENCE:
        raise ValueError(f"is silent (peak {peak:.1e}); give a file with sound in it")
    return {"samples": count, "peak": peak, "clipped": clipped / count}


def quantise(samples_n: np.ndarray) -> np.ndarray:
    """Converts float samples in [-1, 1] to int16; louder samples are clipped."""
    quantised: np.ndarray = np.clip(np.rint(samples_n * UNIT), -UNIT, UNIT - 1).astype(np.int16)
    return quantised


def _mel_blocks(contract: MelContract, pcm: Path, num_samples: int) -> Iterator[np.ndarray]:
    """Yields blocks of the log mels of the samples in a file, float16 [f, m]; frames do not depend on the block size."""
    hop, frames = contract.hop_length, contract.num_frames(num_samples)
    context = -(-contract.padding // hop)
    for start in range(0, frames, FRAMES_AT_ONCE):
        first, stop = max(0, start - context), min(frames, start + FRAMES_AT_ONCE)
        pcm_n = np.fromfile(pcm, np.int16, count=(stop + context - first) * hop, offset=2 * first * hop)
        samples_n = torch.from_numpy(pcm_n.astype(np.float32) / UNIT)
        mel_mf = contract.log_mel(samples_n)[:, start - first : stop - first]
        yield np.ascontiguousarray(mel_mf.T.numpy().astype(np.float16))
