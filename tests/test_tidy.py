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
