"""The site builds without a warning and fetches nothing; the examples run."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from etude.data.scores.corpora import Folder
from tests.songs import write_songs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "etude"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "-f",
        str(ROOT / "docs" / "site" / "mkdocs.yml"),
        "-d",
        str(folder),
    ]
    environment = {**os.environ, "DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe|audio)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag) or "canonical" in tag, f"{page}: {tag}"


def test_every_choice_of_every_group_has_its_place(site: Path) -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        group = path.parent.relative_to(ROOT / "conf").as_posix()
        if group == "." or "hydra" in group.split("/"):
            continue
        page = (site / "configuration" / group.replace("/", "_") / "index.html").read_text()
        assert f"{group}={path.stem}" in page, path


def test_every_module_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            assert f'id="{name}"' in pages, name


def test_every_page_of_results_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    pages = [path.stem for path in (ROOT / "docs" / "results").glob("*.md") if not path.stem.endswith("_notes")]
    assert pages and all(f'href="results/{name}/"' in start for name in pages)
    assert 'href="reference/core/"' in start and 'href="configuration/technique/"' in start


def test_every_technique_is_described(site: Path) -> None:
    page = (site / "techniques" / "index.html").read_text()
    for path in (ROOT / "conf" / "technique").glob("*.yaml"):
        assert f'<h2 id="{path.stem}">' in page, path.stem


def test_a_session_without_hydra(tmp_path: Path) -> None:
    session = runpy.run_path(str(ROOT / "docs" / "examples" / "train_without_hydra.py"))["session"]
    files = session(corpus=Folder(str(write_songs(tmp_path / "songs"))), steps=2, folder=tmp_path)
    assert len(files) == 2 and all(file.stat().st_size > 100 for file in files)


def test_the_example_is_as_short_as_it_says() -> None:
    text = (ROOT / "docs" / "examples" / "train_without_hydra.py").read_text()
    body = text.partition('G major."""\n')[2].partition("\n\n\nif __name__")[0]
    statements = [line for line in body.splitlines() if re.match(r"^    (?! )[^)]", line)]
    assert 5 < len(statements) <= 15
