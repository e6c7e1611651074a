"""The mel contract in the checkpoints of tasks on audio: read from one, and compared with that of the data."""

from collections.abc import Mapping
from typing import Any

from etude.audio.mel import MelContract


def check_contract(saved: Mapping[str, Any], contract: MelContract) -> None:
    """Checks that a checkpoint is of the same mels.

    saved: what the task has stored. contract: of the data.
    Raises: ValueError if it is of other mels, or of tokens.
    """
    found = MelContract(**saved["contract"]) if "contract" in saved else None
    if found != contract:
        told = "tokens of scores" if found is None else f"another mel contract: {found.difference(contract)}"
        raise ValueError(
            f"the checkpoint was trained on {told}; give the contract= and data= options of its run, which are in its config.yaml"
        )
