"""Reads the files that W&B writes without a network, by W&B's own program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def offline_records(folder: Path) -> dict[str, list[Any]]:
    """The records of the only W&B run under `folder`: kind of record -> records, in the order of writing."""
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    found: dict[str, list[Any]] = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def media(folder: Path, name: str) -> Path:
    """A file that a record names, in the folder of the only W&B run under `folder`."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run / "files" / name
