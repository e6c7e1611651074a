"""`make tidy` lists what is stale and removes it only when told to."""

import subprocess
import sys
from pathlib import Path

TIDY = Path(__file__).parents[1] / "scripts" / "tidy.py"


def tidy(outputs: Path, *options: str) -> str:
    command = [sys.executable, str(TIDY), "--outputs", str(outputs), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_is_stale_is_shown_and_removed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
            (tmp_path / name / file).write_bytes(b"x")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.yaml").write_text("seed: 0")
    (tmp_path / "old" / "checkpoints" / ".last.ckpt.17.part").write_bytes(b"x")
    kept = {path for path in tmp_path.rglob("*.ckpt")}
    shown = tidy(tmp_path)
    assert "empty: an empty run" in shown and ".17.part" in shown and "best.ckpt" not in shown
    assert (tmp_path / "empty").is_dir()
    tidy(tmp_path, "--yes")
    assert not (tmp_path / "empty").exists() and not list(tmp_path.rglob("*.part")) and set(tmp_path.rglob("*.ckpt")) == kept
    shown = tidy(tmp_path, "--yes", "--checkpoints")
    assert "last.ckpt: its run has best.ckpt" in shown
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1 and len(list(tmp_path.rglob("best.ckpt"))) == 2


def test_caches_of_other_versions_are_stale(tmp_path: Path) -> None:
    """Of each kind of cache the present one stays, and the others go."""
    from etude.audio.mel import MelContract
    from etude.data.audio.build import clips_folder
    from etude.data.cache import version
    from etude.data.scores.build import complexity_folder, scores_folder
    from etude.data.scores.tokens import tokens_folder
    from etude.tokens.satb import SatbGrid

    cache = tmp_path / "cache"
    now = [scores_folder(cache), complexity_folder(cache), tokens_folder(SatbGrid(genres=["a"]), cache),
           clips_folder(cache, MelContract()), cache / f"datasets-{version.FORMAT}"]  # fmt: skip
    old = [cache / "scores-0.1-1", scores_folder(cache) / "complexity-0", cache / "tokens-5d864f3b584d8487-0-2",
           cache / "tokens-5d864f3b584d8487-d85669b17e09", cache / "audio-1-0-1", cache / "datasets-0"]  # fmt: skip
    for folder in (*now, *old):
        folder.mkdir(parents=True, exist_ok=True)
    (cache / "statistics").mkdir()
    features = cache / "statistics" / "x-complexity-0-1.npz"
    features.write_bytes(b"x")
    listed = tidy(tmp_path, "--yes").splitlines()[:-1]
    assert {line.split("MB  ")[1] for line in listed} == {f"{path}: a cache of another version" for path in (*old, features)}
    assert all(path.is_dir() for path in now) and not any(path.exists() for path in (*old, features))
