"""How the user calls the programs, for messages that name one."""

import sys
from pathlib import Path


def program(verb: str) -> str:
    """Returns the command of a verb: `etude train` where this process was started as `etude`, otherwise `python train.py`."""
    return f"etude {verb}" if Path(sys.argv[0]).stem in ("etude", "cli") else f"python {verb}.py"
