"""Lists what under outputs/ is stale, largest first, and removes it with --yes: half-written files, empty runs, caches of earlier
versions, and with --checkpoints the last.ckpt of runs that have a best.ckpt, except for the newest run."""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

NO_RESULTS = (
    "config.yaml", "generate.yaml", "evaluate.yaml", "environment.txt", "changes.tsv", "wandb_id.txt", "code.patch", "data.tsv",
)  # fmt: skip


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def stale(outputs: Path, *, checkpoints: bool = False) -> Iterator[tuple[Path, str]]:
    """Yields (path, reason why it can be removed)."""
    for path in outputs.rglob("*.part"):
        yield path, "half written by a run that was killed"
    for config in outputs.rglob("config.yaml"):
        if all(path.is_dir() or path.name in NO_RESULTS for path in config.parent.rglob("*")):
            yield config.parent, "an empty run"
    yield from _old_caches(outputs / "cache")
    last = sorted(outputs.rglob("checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    for path in last[:-1] if checkpoints else ():
        if path.with_name("best.ckpt").is_file():
            yield path, "its run has best.ckpt, and could no longer be continued"


def _old_caches(cache: Path) -> Iterator[tuple[Path, str]]:
    """Parts of a cache that no run of this version reads."""
    if not cache.is_dir():
        return
    from etude.data.audio import build as audio
    from etude.data.cache import version
    from etude.data.scores.build import complexity_folder, scores_folder

    scores, features = scores_folder(cache), complexity_folder(cache)
    tokens = {f"{one}-{version.FORMAT}" for one in (*version.TOKENS.values(), "1")}
    audio_complexity = f"-complexity-{version.AUDIO_COMPLEXITY}-{version.FORMAT}.npz"
    kept = (
        ("scores-*", lambda path: path == scores),
        (f"{scores.name}/complexity-*", lambda path: path == features),
        ("tokens-*", lambda path: path.name.split("-", 2)[-1] in tokens),
        ("audio-*", lambda path: path.name.endswith(f"-{version.MELS}-{audio.FORMAT}")),
        ("datasets-*", lambda path: path.name == f"datasets-{version.FORMAT}"),
        ("statistics/*-complexity-*.npz", lambda path: path.name.endswith(audio_complexity)),
    )
    for pattern, is_current in kept:
        for path in cache.glob(pattern):
            if not is_current(path):
                yield path, "a cache of another version"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    parser.add_argument("--checkpoints", action="store_true", help="list the last.ckpt of earlier runs, too")
    options = parser.parse_args()
    found = sorted(
        ((size(path), path, why) for path, why in stale(options.outputs, checkpoints=options.checkpoints)), reverse=True
    )
    for number, path, why in found:
        print(f"{number / 1e6:10.1f} MB  {path}: {why}")
        if options.yes:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    total = f"{sum(number for number, _, _ in found) / 1e6:.1f} MB"
    print(f"removed {total}" if options.yes else f"{total}; `make tidy ARGS=--yes` removes it, while no run is going")


if __name__ == "__main__":
    main()
