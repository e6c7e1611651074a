"""Where modules of earlier versions lie now, so that what names them, such as checkpoints and caches, still loads.

Every class or function name that is read from a file passes `current`. To move a module, add one line to `MOVED`.
"""

MOVED: dict[str, str] = {}  # dotted prefix then: now, such as "etude.music.satb": "etude.tokens.satb"


def current(name: str) -> str:
    """The dotted `name` with its longest prefix that stands in `MOVED` replaced; whole parts only."""
    fitting = [old for old in MOVED if name == old or name.startswith(f"{old}.")]
    if not fitting:
        return name
    old = max(fitting, key=len)
    return MOVED[old] + name[len(old) :]
