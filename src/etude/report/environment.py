"""Describes the environment of a run (commit, Python, hardware, packages) and writes it to environment.txt."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from etude.report.files import write_atomically


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


def write_environment(folder: Path) -> Path:
    """Writes `environment()` to environment.txt in a run's folder; returns its path."""
    return write_atomically(Path(folder) / "environment.txt", environment())


def read_environment(folder: Path) -> dict[str, str]:
    """Returns the lines "key: value" of environment.txt in a run's folder, such as its commit; without the packages."""
    path = Path(folder) / "environment.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    pairs = (line.partition(": ") for line in text.partition("\npackages:")[0].splitlines())
    return {key: value for key, separator, value in pairs if separator}


def checkout() -> Path | None:
    """Returns the top folder of the git checkout that this code runs from; None if it was installed otherwise."""
    try:
        return Path(_git(Path(__file__).parent, "rev-parse", "--show-toplevel"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def _commit(folder: Path) -> str:
    try:
        commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
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
