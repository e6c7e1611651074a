"""Lists the choices of option groups, one line each; it uses only the standard library, so that it starts fast."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUPS = {
    "technique": "technique=[one,another]",
    "genre": "genre=one",
    "optimizer": "optimizer=one",
    "scheduler": "scheduler=one",
    "stage": "stage=one",
    "level": "level=one",
}


def docstring(target: str) -> str:
    """Returns the first docstring line of a class or function of this repository; for any other, its name."""
    module, _, name = target.rpartition(".")
    path = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    if path.is_file():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
    return target


def effect(path: Path) -> str:
    """Returns the comment at the beginning of the file, else the first docstring line of its `_target_`."""
    text = path.read_text()
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    if comments and text.splitlines()[0].startswith("#"):
        return comments[0]
    target = re.search(r"_target_: *(\S+)", text)
    return docstring(target.group(1)) if target else ""


def notes(name: str) -> str:
    """Returns what a technique controls exclusively, and whether it only observes or only acts on faults."""
    text = "".join(path.read_text() for path in (ROOT / "src" / "etude" / "techniques").rglob(f"{name}.py"))
    owned = sorted({power.lower().replace("_", " ") for power in re.findall(r"\bPower\.([A-Z_]+)", text)})
    verb = "may own" if "self.claims" in text else "owns"
    said = [f"{verb} {' and '.join(owned)}"] if owned else []
    for word, meaning in (("only_observes", "only looks"), ("is_guard", "acts on faults alone")):
        if re.search(rf"^    {word}: ClassVar\[bool\] = True", text, re.MULTILINE):
            said.append(meaning)
    return f" ({'; '.join(said)})" if said else ""


def table(group: str) -> list[str]:
    """Returns the heading of a group and a line for each choice; an empty list if the group does not exist."""
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    width = max((len(path.stem) for path in files), default=0)
    lines = [f"  {path.stem:{width}}  {effect(path)}{notes(path.stem) if group == 'technique' else ''}" for path in files]
    return [GROUPS[group], *lines, ""] if files else []


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(GROUPS)
    if unknown := [group for group in wanted if group not in GROUPS]:
        sys.exit(f"error: {unknown[0]} is no group; there are {', '.join(GROUPS)}")
    sys.stdout.write("".join(f"{line}\n" for group in wanted for line in table(group)))
