"""Levels and fast convergence compose for every task with what it can be served with, and leave the user's own choices."""

import importlib
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from etude.run import instantiate
from tests.songs import write_songs
from tests.test_run import TINY, call, fails

CONF = Path(__file__).parents[1] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
GUARDED = {"ema", "stability", "early_stopping"}
MUSIC = {"musical_domain"}
EXPECTED: dict[str, dict[str, tuple[str, set[str]]]] = {  # optimizer's class, techniques; by level, then by kind of task
    "level=basic": {"language_model": ("AdamW", set()), "vocoder": ("AdamW", set()), "gan": ("Adam", set())},
    "level=enhanced": {
        "language_model": ("muon", GUARDED | MUSIC),
        "vocoder": ("AdamW", GUARDED | {"balance"}),
        "gan": ("Adam", GUARDED | {"balance"}),
    },
    "level=experimental": {
        "language_model": ("muon", GUARDED | MUSIC | {"curriculum"}),
        "vocoder": ("AdamW", GUARDED | {"balance"}),
        "gan": ("Adam", GUARDED | {"balance", "fill_frames"}),
    },
    "convergence=fast": {
        "language_model": ("muon", {"ema"}),
        "vocoder": ("AdamW", {"ema"}),
        "gan": ("Adam", {"ema"}),
    },
}
SCHEDULES = {
    "level=basic": "noam",
    "level=enhanced": "cosine_restarts",
    "level=experimental": "cosine_restarts",
    "convergence=fast": "wsd",
}


def composed(*options: str) -> DictConfig:
    importlib.import_module("etude.run")  # its resolver
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(options))


def of(target: str) -> str:
    return target.rpartition(".")[2]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bundle", EXPECTED)
def test_a_bundle_suits_every_task(bundle: str, task: str) -> None:
    cfg = composed(bundle, f"task={task}")
    expected = EXPECTED[bundle]
    optimizer, techniques = expected.get(task, expected["gan"])
    assert of(cfg.scheduler._target_) == SCHEDULES[bundle]
    assert (of(cfg.optimizer._target_), set(cfg.technique or {})) == (optimizer, techniques)
    for node in (cfg.technique or {}).values():
        assert type(instantiate(node)).__module__.startswith("etude.techniques.")
    if task not in ("language_model", "vocoder"):
        assert cfg.task.huber == (0.5 if bundle in ("level=enhanced", "level=experimental") else 0.0)


@pytest.mark.parametrize("bundle", EXPECTED)
def test_the_users_own_choices_win(bundle: str) -> None:
    cfg = composed(bundle, "technique=[finite]", "optimizer=lion", "scheduler=cosine")
    assert list(cfg.technique) == ["finite"] and of(cfg.optimizer._target_) == "lion" and of(cfg.scheduler._target_) == "cosine"
    assert not composed(bundle, "technique=[]").get("technique") and not composed(bundle, "~technique").get("technique")
    assert composed(bundle, "task=cut", "task.huber=0.1").task.huber == 0.1
    if bundle != "level=basic":
        assert composed(bundle, "technique.ema.decay=0.7").technique.ema.decay == 0.7
    other = composed(bundle, "scheduler=linear").scheduler
    assert {str(key) for key in other} - {"_target_", "_partial_"} <= set(inspect.signature(instantiate(other).func).parameters)
    if "experimental" in bundle:
        assert "curriculum" not in composed(bundle, "~technique.curriculum").technique


@pytest.mark.parametrize("bundle", ["level=enhanced", "level=experimental"])
def test_a_genre_sets_the_weights_of_a_level(bundle: str) -> None:
    alone, together = composed("genre=jazz").technique.musical_domain, composed(bundle, "genre=jazz").technique.musical_domain
    assert together == alone != composed(bundle).technique.musical_domain


def test_fast_convergence_over_a_level_is_the_fast_one() -> None:
    cfg = composed("level=enhanced", "convergence=fast")
    assert of(cfg.scheduler._target_) == "wsd" and set(cfg.technique) == {"ema"}


def test_what_a_level_writes_out_has_the_values_of_its_file_but_for_the_smoothing() -> None:
    target = composed("level=enhanced").technique.musical_domain
    module, _, name = target._target_.rpartition(".")
    defaults = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert {key: value for key, value in target.items() if key not in ("_target_", "seed", "smoothing")} == {
        key: parameter.default for key, parameter in defaults.items() if key not in ("seed", "smoothing")
    }


def test_every_task_has_an_optimizer_of_the_levels() -> None:
    assert sorted(path.stem for path in (CONF / "optimizer" / "level").glob("*.yaml")) == TASKS


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("levels") / "songs")


@pytest.mark.parametrize(
    "options", [["level=basic"], ["level=enhanced", "genre=pop"], ["level=experimental"], ["fast_convergence=true"]], ids=str
)
def test_a_bundle_trains(songs: Path, tmp_path: Path, options: list[str]) -> None:
    where = [f"data.root={songs}", f"cache_dir={songs.parent / 'cache'}", "~sampling"]
    tiny = [option for option in TINY if not option.startswith("sampling")]
    assert call("train", tmp_path / "run", *tiny, *where, *options) < 10


def test_an_experiment_may_set_what_a_level_leaves_out(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = ["technique.ema.decay=0.9", "technique=[finite]", "experiment=jsb", f"data.root={songs}"]
    assert "technique.ema is set, but the technique is not chosen" in fails(capsys, "train", tmp_path / "typed", *experiment)
    told = fails(capsys, "train", tmp_path / "run", "level=basic", "experiment=jsb", f"data.root={songs}")
    assert "technique" not in told  # it is the data that is no benchmark
