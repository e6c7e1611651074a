"""Which code made a cache: a hash of the modules that decide its content, so that a cache never outlives its reader."""

import functools
import hashlib
import importlib.util
import re
from pathlib import Path

IMPORT = re.compile(r"^\s*(?:from (etude(?:\.\w+)*) import ([\w, ]*)|import (etude(?:\.\w+)*))", re.MULTILINE)
FORMAT = re.compile(r"\s+|,(?=\s*[)\]}])")


@functools.cache
def code_version(*modules: str) -> str:
    """Twelve hex digits that change with the code of `modules` and of all of etude that they import.

    Comment lines and the format (line breaks, indentation of continued lines, trailing commas) don't count.

    modules: full names such as 'etude.music.score'; modules outside etude are left out. Nothing is imported.
    """
    seen: dict[str, str] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        path = _source(name)
        if path is None or name in seen:
            continue
        text = path.read_text(encoding="utf-8")
        code = "".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        seen[name] = FORMAT.sub("", code)
        for package, names, module in IMPORT.findall(text):
            todo += [module] if module else [package, *(f"{package}.{found.strip()}" for found in names.split(","))]
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()[:12]


@functools.cache
def _source(name: str) -> Path | None:
    """The file of a module of etude; None for anything else, such as the name of a class."""
    if not name.startswith("etude"):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
