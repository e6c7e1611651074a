"""Which of several processes of one training this is."""

import os


def rank() -> int:
    """Returns the rank of this process within its run, from what the launcher has set; 0 without one."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), 0)
