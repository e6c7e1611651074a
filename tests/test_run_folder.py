"""Each run has a folder of its own, kept by it alone; one that continues goes on in the earlier run's."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from etude.core.checkpoint_search import find_checkpoint
from etude.run.folder import RunFolder, _created, create_folder, locked_folder, write_config

CONF = Path(__file__).parents[1] / "conf"


def _make(path: Path) -> str:
    return str(create_folder(path))


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "day" / "12-00-00_chorales"
    # not "fork": a copy of a process with other threads may wait forever for a lock that one of them held
    with ProcessPoolExecutor(4, multiprocessing.get_context("forkserver")) as pool:
        found = list(pool.map(_make, [path] * 40))
    assert sorted(found) == sorted([str(path), *(f"{path}_{number}" for number in range(2, 41))])
    assert all(Path(folder).is_dir() for folder in found)


def chosen(*options: str, conf: Path = CONF, program: str = "train") -> Path:
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose(program, overrides=list(options), return_hydra_config=True)
    cfg.hydra.job.config_name = program
    folder = RunFolder()
    folder.on_run_start(cfg)
    return Path(cfg.hydra.run.dir)


@pytest.mark.parametrize(
    ("program", "conf"), [("train", ""), ("transfer", ""), ("generate", "generation"), ("evaluate", "evaluation")]
)
def test_every_program_makes_its_own(tmp_path: Path, program: str, conf: str) -> None:
    now = "hydra.run.dir=${outputs}/now"  # as the configuration says it, not as a user gives it
    with initialize_config_dir(str(CONF / conf), version_base="1.3"):
        cfg = compose(program, overrides=[f"outputs={tmp_path}", now], return_hydra_config=True)
    assert OmegaConf.select(cfg, "hydra.callbacks.folder._target_") == "etude.run.folder.RunFolder"
    folders = []
    for _ in range(2):
        again = cfg.copy()
        again.hydra.job.config_name, again.hydra.overrides.hydra = program, []
        RunFolder().on_run_start(again)
        folders.append(again.hydra.run.dir)
    assert folders == [str(tmp_path / "now"), str(tmp_path / "now_2")]


def test_a_stage_on_an_earlier_runs_data_is_named_by_itself(tmp_path: Path) -> None:
    here = f"outputs={tmp_path}"
    assert chosen(here, "stage=polish").name.endswith("_polish")
    assert chosen(here, "stage=finetune", "data=folder", "data.root=x").name.endswith("_folder")
    assert chosen(here, "stage=pretrain", "data=corpus").name.endswith("_corpus")
    assert chosen(here, "stage=polish", "hydra.run.dir=${outputs}/a_chorales").name == "a_chorales"


def test_a_sweep_does_too_and_its_runs_know(tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"hydra.sweep.dir={tmp_path / 'now'}"], return_hydra_config=True)
    cfg.hydra.overrides.hydra = []
    RunFolder().on_multirun_start(cfg)
    assert cfg.hydra.sweep.dir == str(tmp_path / "now_2")
    assert cfg.hydra.overrides.hydra == [f'hydra.sweep.dir="{tmp_path / "now_2"}"']


def test_of_two_commands_that_start_again_at_once_one_has_made_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one, which the lock then refuses, must not remove it."""
    mine = [f"outputs={tmp_path}", "autoresume=true"]
    made = chosen(*mine)
    assert made in _created
    _created.discard(made)  # as another process, which sees no folder yet and is then overtaken
    is_dir, answers = Path.is_dir, iter([False])
    monkeypatch.setattr(Path, "is_dir", lambda self: next(answers, True) if self == made else is_dir(self))
    assert chosen(*mine) == made and made not in _created


def run_of(folder: Path, *names: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    for name in names:
        (folder / "checkpoints" / name).write_bytes(b"x")
    return folder


def test_a_continued_run_keeps_its_folder(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", "last.ckpt", "best.ckpt")
    outputs = f"outputs={tmp_path}"
    for ckpt in (one, "last", one / "checkpoints" / "last.ckpt"):
        assert chosen(outputs, f"ckpt={ckpt}") == one
    assert chosen(outputs, f"ckpt={one}", f"hydra.run.dir={tmp_path / 'mine'}") == tmp_path / "mine"
    (tmp_path / "alone.ckpt").write_bytes(b"x")
    for ckpt in (tmp_path / "alone.ckpt", one / "checkpoints" / "best.ckpt"):  # a branch
        assert chosen(outputs, f"ckpt={ckpt}") not in (one, tmp_path)
    assert chosen(outputs, f"ckpt={one}", program="generate", conf=CONF / "generation") != one


def test_a_run_that_holds_only_its_best_checkpoint_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_of(tmp_path / "one", "best.ckpt")
    for ckpt in (str(one), "last", str(one / "checkpoints")):
        assert find_checkpoint(ckpt, str(tmp_path)) == one / "checkpoints" / "best.ckpt"
        assert f"ckpt={ckpt}: there is no last.ckpt; taking" in capsys.readouterr().err
    os.utime(run_of(tmp_path / "two", "last.ckpt", "best.ckpt") / "checkpoints" / "last.ckpt", (2e9, 2e9))
    assert find_checkpoint("last", str(tmp_path)) == tmp_path / "two" / "checkpoints" / "last.ckpt"
    run_of(tmp_path / "three")
    with pytest.raises(ValueError, match="no such file"):
        find_checkpoint(str(tmp_path / "three"), str(tmp_path))


def test_last_is_no_trial_of_a_sweep(tmp_path: Path) -> None:
    one, trial = (run_of(tmp_path / name, "last.ckpt") for name in ("one", "sweeps/study/7"))
    os.utime(trial / "checkpoints" / "last.ckpt", (2e9, 2e9))  # the newest
    (trial / "config.yaml").write_text("trial:\n  study: s\n  number: 7\n")
    (one / "config.yaml").write_text("trial: null\n")
    assert find_checkpoint("last", str(tmp_path)) == one / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(trial), str(tmp_path)) == trial / "checkpoints" / "last.ckpt"


def test_who_uses_a_model_gets_the_best_of_a_run(tmp_path: Path) -> None:
    one, outputs = run_of(tmp_path / "one", "last.ckpt", "best.ckpt"), str(tmp_path)
    best, last = (one / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    for ckpt in (str(one), "last", str(one / "checkpoints"), str(best)):
        assert find_checkpoint(ckpt, outputs, best=True) == best
    assert find_checkpoint(str(last), outputs, best=True) == last  # a file is that file
    assert find_checkpoint(str(one), outputs) == last  # with which training goes on
    best.unlink()
    assert find_checkpoint(str(one), outputs, best=True) == last


def test_two_runs_are_not_at_one_folder(tmp_path: Path) -> None:
    left = tmp_path / ".metrics.csv.17.part"
    left.write_text("of a killed run")
    with locked_folder(tmp_path):
        assert not left.exists()
        with pytest.raises(ValueError, match="still running"), locked_folder(tmp_path):
            pass
    with locked_folder(tmp_path):
        pass


def test_an_earlier_configuration_stays_beside(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("ckpt: null\nlr: 1\n", "ckpt: last\nlr: 1\n", "ckpt: last\nlr: 2\n", "ckpt: last\nlr: 3\n"):
        write_config(path, text)
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {
        "config.yaml": "ckpt: last\nlr: 3\n",
        "config_1.yaml": "ckpt: last\nlr: 1\n",
        "config_2.yaml": "ckpt: last\nlr: 2\n",
    }
