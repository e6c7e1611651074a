"""A folder whose reader crashes; a module of its own, since each new process of it imports this file and nothing heavy."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from symusic import Score

from etude.data.scores.corpora import Folder


@dataclass(frozen=True)
class Troubled(Folder):
    """A folder some of whose files crash, hang or exhaust their reader, by what their names say."""

    def read(self, path: Path) -> Iterator[tuple[str, str, Score]]:
        if "crash" in path.name and "ETUDE_TEST_SPARED" not in os.environ:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "exit" in path.name:
            os._exit(3)
        if "memory" in path.name:
            raise MemoryError
        if "slow" in path.name:
            time.sleep(0.5)
        yield from super().read(path)
