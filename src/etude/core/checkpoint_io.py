"""Writes checkpoint files atomically, and says what space they need."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from etude.core.disk_space import check_space, no_space, size_of
from etude.durable import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file in the same folder, which is synced and then renamed.

    A reader finds either the earlier file or the new one, never a part. The system's temporary folder is not used.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint. Raises: OSError with the path and the size needed; the earlier file is then unchanged."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = size_of(checkpoint)
        check_space(path, size)
        try:
            with replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
                counting = _CountingFile(file)
                torch.save(checkpoint, counting)  # type: ignore[arg-type]  # torch.save calls only write and flush
                size = counting.size
                if counting.error is not None:
                    raise counting.error
        except OSError as error:
            raise no_space(path, error, size) from error


class _CountingFile:
    """A file for torch.save that counts bytes, also after an error, so that the message can name the total size."""

    def __init__(self, file: Any) -> None:
        self.file, self.size = file, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        length = len(rest)
        self.size += length
        try:
            while self.error is None and len(rest):
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.error = error
        return length

    def flush(self) -> None:
        """Does nothing: the file has no buffer."""
