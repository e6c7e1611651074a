"""Fixtures that every test may use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from etude.core.stopping import SIGNALS, restore_handlers
from tests.matrix import Selection, select

ROOT = Path(__file__).parents[1]

# A submission is judged by the same examples each time; at the desk every run looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", choices=["touched", "all"], default="all", help="techniques of tests/test_composition.py")
    parser.addoption("--matrix-seed", default=None, help="with --matrix touched: what is drawn beside them; default: the commit")
    parser.addoption("--accelerator", choices=["cpu", "gpu"], default="cpu", help="what tests train on")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--accelerator") == "gpu":
        from tests import toys

        toys.accelerator = "gpu"
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS needs to repeat exactly


def selection(config: pytest.Config) -> Selection | None:
    """The techniques that the composition tests try; None: all."""
    if config.getoption("--matrix") == "all":
        return None
    names = [path.stem for path in (ROOT / "conf" / "technique").glob("*.yaml")]
    return select(ROOT, names, seed=config.getoption("--matrix-seed"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = {item.path for item in items if item.path.suffix == ".ipynb" or item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)  # first, so that no process is left alone with one of them at the end
    chosen = selection(config)
    if chosen is None:
        return
    left_out = [item for item in items if item.path.name == "test_composition.py" and not _is_tried(item, chosen)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_tried(item: pytest.Item, chosen: Selection) -> bool:
    name = item.callspec.params.get("name") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return name is None or name in chosen.names


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Each test leaves the handlers that it found: with those of an earlier Trainer, a process would not end by SIGTERM."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    restore_handlers(before)


@pytest.fixture(scope="session")
def matrix_seed(request: pytest.FixtureRequest) -> str:
    """What the random sets of techniques are drawn with: one seed for --matrix all, another for each commit otherwise."""
    chosen = selection(request.config)
    return "0" if chosen is None else chosen.seed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    chosen = selection(config)
    if chosen is not None:
        terminalreporter.write_line(f"techniques in the composition tests: {chosen}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark data beside the checkout; a test that wants it skips where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the benchmark data folder {folder.name} beside the checkout")
    return folder
