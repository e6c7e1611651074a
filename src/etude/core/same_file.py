"""The checkpoint of another run that a technique reads: it must be the same file when its own run goes on."""

import hashlib
from collections.abc import Mapping
from pathlib import Path


class SameFile:
    """Path and SHA-256 of a file, compared with those in the state of the run that goes on.

    The state may be restored before the file is found or after it.

    Args:
        use: what the run did with the file, such as "technique distillation: the run was distilled from".
        role: what the file is now, such as "the teacher".
    """

    def __init__(self, use: str, role: str) -> None:
        self.use, self.role = use, role
        self.state: dict[str, str] = {}  # path, sha256; empty before the file is known

    def found(self, path: Path) -> None:
        """Notes the file of this run. Raises: ValueError if the restored state is of another one."""
        mine = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        self._compare(mine, self.state)
        self.state = mine

    def restore(self, saved: Mapping[str, str]) -> None:
        """Restores the state of the run that goes on. Raises: ValueError if this run has found another file."""
        self._compare(self.state, saved)
        self.state = dict(saved)

    def _compare(self, mine: Mapping[str, str], saved: Mapping[str, str]) -> None:
        if mine and saved and mine["sha256"] != saved["sha256"]:
            raise ValueError(
                f"{self.use} {saved['path']} ({saved['sha256'][:12]}), but here {self.role} is {mine['path']} "
                f"({mine['sha256'][:12]}); give the same one"
            )
