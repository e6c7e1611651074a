"""The wheel works outside the clone: its configuration is inside, and what it writes lands in the current folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.songs import write_songs

ROOT = Path(__file__).parents[1]


def done(*command: str | Path, folder: Path) -> str:
    """Runs a command that knows nothing of this checkout, and returns what it printed."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    ended = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_installed_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    for name in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done(*pip, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", tmp_path, source, folder=tmp_path)
    shutil.rmtree(source)

    done(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("etude-*.whl")
    done(*pip, "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=tmp_path)
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=home).strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # where the tests' packages are, without its .pth files
    place = done(python, "-c", "import etude.run.cli; print(etude.run.cli.__file__, etude.run.cli.conf_folder())", folder=home)
    assert place.split() == [str(own / "etude" / "run" / "cli.py"), str(own / "etude" / "conf")]
    assert (own / "etude" / "py.typed").is_file()
    models = {path.name for path in (own / "etude" / "pretrained").glob("*.safetensors")}
    assert models == {"scores.safetensors", "styles.safetensors"}
    page = [path.name for path in (ROOT / "src" / "etude" / "studio" / "page").iterdir()]
    assert page and all((own / "etude" / "studio" / "page" / name).is_file() for name in page)

    write_songs(tmp_path / "songs")
    options = ["data=folder", f"data.root={tmp_path / 'songs'}", "trainer=smoke", "model.dim=32", "model.num_layers=1",
               "data.max_len=256", "data.max_eval_len=512", "data.prepare_workers=1", "sampling.num_samples=1",
               "sampling.num_bars=1", "sampling.audio=false"]  # fmt: skip
    done(tmp_path / "venv" / "bin" / "etude", "train", *options, folder=home)
    assert [path.name for path in home.iterdir()] == ["outputs"]
    (run,) = (path.parents[1] for path in home.glob("outputs/*/*/checkpoints/last.ckpt"))
    assert run.name.endswith("_folder") and (run / "samples" / "000.mid").is_file()
