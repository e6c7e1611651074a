"""Which code made a cache: a hash of the modules that decide its content, so that a cache never outlives its reader."""

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path

ROOT = "etude."


@functools.cache
def code_version(*modules: str) -> str:
    """Twelve hex digits that change with the code (not the comments) of `modules` and of all of etude that they import.

    modules: full names such as 'etude.music.score'. Nothing is imported: the sources are parsed.
    """
    seen: dict[str, str] = {}
    todo = [name for name in modules if name.startswith(ROOT)]
    while todo:
        name = todo.pop()
        spec = None if name in seen else importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        tree = ast.parse(Path(spec.origin).read_bytes())
        seen[name] = ast.dump(tree)
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            todo += [found for found in names if found.startswith(ROOT) and _is_module(found)]
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()[:12]


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False  # 'etude.music.score.Score' names a thing in a module, not a module
