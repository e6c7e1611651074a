"""Opens the trials of a sweep in optuna-dashboard: python scripts/dashboard.py [STORAGE] [its options].

Without a storage, the newest sweep's.
"""

import importlib.util
import os
import sys
from pathlib import Path


def newest(outputs: Path) -> Path:
    """Returns the storage of the sweep that wrote last. Raises: ValueError if there is none."""
    found = sorted(outputs.glob("sweeps/*/study.journal"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"{outputs / 'sweeps'} has no sweep; start one (python train.py sweep=tpe ...) or give STORAGE=its storage"
        )
    return found[-1]


def main() -> None:
    try:
        if importlib.util.find_spec("optuna_dashboard") is None:
            raise ValueError("optuna-dashboard is not installed; install Etude's extra: pip install 'etude[dashboard]'")
        options = sys.argv[1:]
        storage = options.pop(0) if options and not options[0].startswith("-") else str(newest(Path("outputs")))
        storage = storage.removeprefix("journal://")
        if "://" not in storage and not Path(storage).is_file():
            raise ValueError(f"STORAGE={storage} is not a file; give a study.journal, an SQLite file or a storage's URL")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if Path(storage).suffix in (".db", ".sqlite", ".sqlite3"):
        storage = f"sqlite:///{storage}"
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    os.execv(program, [program, storage, *options])


if __name__ == "__main__":
    main()
