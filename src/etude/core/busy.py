"""The error of a run that can't begin yet."""


class Busy(ValueError):
    """Raised if another process still uses what this run needs; a sweep starts such a trial again later."""
