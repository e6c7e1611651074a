"""Describes the environment of a run: commit, Python, hardware and packages, and the code that is not committed."""

import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from etude.report.files import write_atomically

MAX_PATCH = 10_000_000  # characters


def environment(*, source: Path | None = None) -> str:
    """Returns a description of the environment of a run: commit, Python, hardware, packages.

    Args:
        source: a folder in the checkout whose commit is reported; None for the folder of this file.

    Returns:
        Lines "key: value", then a line "name==version" for each installed package, sorted.
    """
    import torch

    lines = {
        "commit": _commit(source or Path(__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} usable",
        "memory": _memory(),
        "torch threads": str(torch.get_num_threads()),
        "gpu": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "cuda": str(torch.version.cuda or "none"),
    }
    names = {(dist.metadata["Name"] or "?", dist.version) for dist in metadata.distributions()}
    packages = sorted((f"{name}=={version}" for name, version in names), key=str.lower)
    return "\n".join([*(f"{key}: {value}" for key, value in lines.items()), "", "packages:", *packages, ""])


def write_environment(folder: Path, *, source: Path | None = None) -> Path:
    """Writes environment.txt and, where the code has uncommitted changes, code.patch to a run's folder; returns the first path.

    In a run that continues, an environment or a patch that differs is kept as environment_1.txt or code_1.patch, ...
    """
    folder, source = Path(folder), source or Path(__file__).parent
    patch = uncommitted(source)
    for path, text in ((folder / "environment.txt", environment(source=source)), (folder / "code.patch", patch)):
        if path.is_file() and path.read_bytes() != text.encode():
            names = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(1))
            path.rename(next(name for name in names if not name.exists()))
        if text:
            write_atomically(path, text)
    return folder / "environment.txt"


def _git(folder: Path, *arguments: str, **variables: str) -> str:
    """Returns what git prints. Raises: OSError or SubprocessError outside a checkout, or without git."""
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, timeout=20, check=True, env=environment)
    return done.stdout.decode(errors="replace")


def uncommitted(folder: Path) -> str:
    """Returns the difference of the code from its commit, for `git apply`, with new files in src, conf and beside them.

    "" where there is none, or no git checkout. A difference that is too large is only named.
    """
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        own = [name for name in ("src", "conf", "benchmarks") if (root / name).is_dir()]
        with tempfile.TemporaryDirectory() as place:  # an index of our own, so that the user's is not changed
            index = Path(place) / "index"
            theirs = root / _git(root, "rev-parse", "--git-path", "index").strip()
            if theirs.is_file():
                shutil.copy2(theirs, index)  # with its time, by which git knows which files it must compare
            new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *own, ":(glob)*.py").split("\0")
            if any(new):
                _git(root, "add", "--intent-to-add", "--", *filter(None, new), GIT_INDEX_FILE=str(index))
            patch = _git(root, "diff", "--binary", "HEAD", GIT_INDEX_FILE=str(index))
    except (OSError, subprocess.SubprocessError):
        return ""
    if len(patch) > MAX_PATCH:
        return f"# the difference has {len(patch) / 1e6:.0f} MB, which is too large to be kept; commit it\n"
    return patch


def read_environment(folder: Path) -> dict[str, str]:
    """Returns the lines "key: value" of environment.txt in a run's folder, such as its commit; without the packages."""
    path = Path(folder) / "environment.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    pairs = (line.partition(": ") for line in text.partition("\npackages:")[0].splitlines())
    return {key: value for key, separator, value in pairs if separator}


def checkout() -> Path | None:
    """Returns the top folder of the git checkout that this code runs from; None if it was installed otherwise."""
    try:
        return Path(_git(Path(__file__).parent, "rev-parse", "--show-toplevel").strip())
    except (OSError, subprocess.SubprocessError):
        return None


def _commit(folder: Path) -> str:
    try:
        commit, changed = _git(folder, "rev-parse", "HEAD").strip(), uncommitted(folder)
    except (OSError, subprocess.SubprocessError):
        return "unknown (not a git checkout, or no git)"
    return f"{commit}{' with uncommitted changes' if changed else ''}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"
