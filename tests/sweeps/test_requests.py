"""What a sweep makes of its command: each trial's options, the experiment of its best trial, and whose folders it may use."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState, create_trial

from etude.run import sweep_request, sweeping
from etude.run.cli import conf_folder, hydra_options
from etude.run.experiment_file import ELSEWHERE, experiment_file
from etude.run.recipes import fastest_precision
from etude.sweeps import summary
from etude.sweeps.driver import Driver
from etude.sweeps.early_end import EarlyEnd
from etude.sweeps.leases import Leases
from etude.sweeps.plan import Plan
from etude.sweeps.space import Space, described, interval
from etude.sweeps.study import FOLDER, open_study, refuse_foreign

SPACE: Space = (interval("x", "x", 0.0, 1.0),)
PLAN = Plan(["loss:min"], space=described(SPACE))


@pytest.fixture(scope="module")
def hydra() -> Iterator[HydraContext]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield cast(HydraContext, type("Context", (), {"config_loader": GlobalHydra.instance().config_loader()})())


def plain(config: DictConfig) -> dict[str, Any]:
    found = cast(dict[str, Any], OmegaConf.to_container(config))
    return {key: value for key, value in found.items() if key not in ELSEWHERE}


def composed(options: list[str]) -> DictConfig:
    return GlobalHydra.instance().config_loader().load_configuration("train", options, RunMode.RUN, from_shell=False)


@functools.cache
def sweep_config() -> DictConfig:
    return compose("train", overrides=["sweep=tpe", "hydra.sweep.dir=out", "study=s"], return_hydra_config=True)


def read(hydra: HydraContext, *options: str) -> sweep_request.Request:
    return sweep_request.read_request(copy.deepcopy(sweep_config()), hydra, cast(Any, None), ["sweep=tpe", "study=s", *options])


@pytest.mark.parametrize(
    "options",
    [
        ["level=enhanced", "optimizer.lr=0.02"], ["level=basic", "task=cyclegan", "data=audio_folder"], ["stage=finetune"],
        ["convergence=fast", "data=folder", "data.root='a=b, c'", "genre=jazz"],
        ["experiment=baseline", "technique=[ema]", "technique.ema.decay=0.5"], ["experiment=baseline", "max_steps=77"],
        ["~technique.ema.every", "~model.dropout"],
        ["sampling=[]", "trainer=smoke", "discriminator=[]", "optimizer=schedule_free"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_experiment_of_a_trial_composes_what_the_trial_had(hydra: HydraContext, tmp_path: Path, options: list[str]) -> None:
    wanted = plain(composed(options))
    text = experiment_file(options, compose=composed, comments=["a trial"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "found.yaml").write_text(text)
    gone = [option for option in options if f"add {option} on the command line" in text]
    assert gone == [option for option in options if option == "~model.dropout"]
    found = plain(composed([f"hydra.searchpath=[file://{tmp_path}]", "experiment=found", *gone]))
    assert found == wanted, text


def test_samples_that_the_command_asks_for_are_kept_and_composed(hydra: HydraContext) -> None:
    for asked in ([], ["sampling.num_samples=3"], ["sample_every=5"]):
        request = read(hydra, "optimizer.lr=choice(0.1)", *asked)
        starter = sweeping.TrialStarter(request, None, cast(Leases, None))
        options = [o for o in starter.options(0, ["optimizer.lr=0.1"], Path("out/0")) if not o.startswith("trial=")]
        assert ("~sampling" in options) == (not asked)
        cfg = composed(options)  # the trial itself composes
        assert (cfg.get("sampling") is None) == (not asked)
    assert "sampling" not in {option.partition("=")[0].lstrip("~") for option in request.fixed}


def test_a_trial_is_repeated_with_its_threads(hydra: HydraContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    trial = create_trial(
        value=1.0,
        params={"optimizer.lr": 0.1},
        distributions={"optimizer.lr": optuna.distributions.CategoricalDistribution([0.1])},
    )
    request = read(hydra, "optimizer.lr=choice(0.1)")
    for jobs, typed, threads in ((1, [], None), (2, [], 4), (2, ["threads=3"], 3)):
        request.config.n_jobs, request.fixed = jobs, typed
        line = sweeping.repeated(trial, request)
        assert [o for o in line.split() if o.startswith("threads=")] == ([] if threads is None else [f"threads={threads}"])
    assert "threads: 3" in sweeping.experiment(trial, request)


def test_a_plan_tells_trainers_and_data_apart_but_not_where_they_are(hydra: HydraContext, tmp_path: Path) -> None:
    for name, content in (("jazz", "a"), ("elsewhere", "a"), ("rock", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "song.mid").write_text(content)

    def plan(*options: str, root: str = "jazz") -> Plan:
        return read(hydra, "optimizer.lr=choice(0.1)", "data=folder", f"data.root={tmp_path / root}", *options).plan

    study = open_study(optuna.storages.InMemoryStorage(), "s", plan())
    for fine in (plan("trainer=ddp", "trainer.devices=3", "seed=0"), plan(root="elsewhere")):
        open_study(study._storage, "s", fine)
    for other, told in (
        (plan(root="rock"), "data.root has other files now"), (plan("trainer=smoke"), "trainer.limit_val_batches was 1.0, is 2"),
        (plan("trainer.precision=64-true"), f"trainer.precision was {fastest_precision('cpu')}, is 64-true"),
        (replace(plan(), seed=1), "seed was 0, is 1"), (replace(plan(), max_steps=9), "max_steps was 800, is 9"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"study=s has other trials already: {told}"):
            open_study(study._storage, "s", other)


def test_a_study_takes_over_no_folder_that_it_has_not_made(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "s", PLAN)
    (tmp_path / "output").mkdir()
    refuse_foreign(study, tmp_path)
    refuse_foreign(study, tmp_path / "none")
    (tmp_path / "0").mkdir()
    with pytest.raises(ValueError, match=rf"{tmp_path / '0'} was not made by study=s; .*hydra.sweep.dir="):
        refuse_foreign(study, tmp_path)
    study.ask().set_user_attr(FOLDER, str(tmp_path / "0"))
    refuse_foreign(study, tmp_path)


def test_a_folder_that_another_study_makes_meanwhile_is_left_alone(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = open_study(storage, "s", PLAN)
    (tmp_path / "0").mkdir()
    begun = []
    driver = Driver(
        study, PLAN, SPACE, Leases(study, storage, seconds=60), tmp_path, 2, 1,
        lambda *arguments: begun.append(arguments), EarlyEnd(PLAN), print,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ValueError, match="was not made by study=s"):
        driver.run()
    assert not begun and study.trials[0].state == TrialState.WAITING and (tmp_path / "0").is_dir()


def test_what_is_no_longer_the_best_leaves_no_experiment(tmp_path: Path) -> None:
    study = open_study(optuna.storages.InMemoryStorage(), "s", replace(PLAN, objectives=["a:min", "b:min"]))
    for values in ([1.0, 2.0], [2.0, 1.0], [0.0, 0.0]):
        study.add_trial(create_trial(values=values, params={"x": 0.5}, distributions={"x": SPACE[0].distribution}))
        (tmp_path / "mine.yaml").write_text("kept")
        summary.write(study, replace(PLAN, objectives=["a:min", "b:min"]), SPACE, tmp_path, lambda trial: str(trial.number))
        found = {path.name: path.read_text() for path in tmp_path.glob("*.yaml")}
        count = len(study.trials)
        expected = {"front_0.yaml": "0", "front_1.yaml": "1"} if count == 2 else {"best.yaml": "0" if count == 1 else "2"}
        assert found == {"mine.yaml": "kept", **expected}


@pytest.mark.parametrize("option", ["sweep=null", "sweep=[]"])
def test_no_sweep_is_a_plain_run(option: str) -> None:
    assert hydra_options([option, "seed=1"]) == ["sweep=[]", "seed=1"]
    assert hydra_options(["sweep=tpe", "seed=1"]) == ["--multirun", "sweep=tpe", "seed=1"]
