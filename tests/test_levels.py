"""Levels and fast convergence compose for every task with what it can be served with, and leave the user's own choices."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from etude.run.parts import instantiate
from etude.run.recipes import spelled_out
from tests.songs import write_songs
from tests.test_run import TINY, call, fails

CONF = Path(__file__).parents[1] / "conf"
TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
GENRES = sorted(path.stem for path in (CONF / "genre").glob("*.yaml"))
GUARDED = "ema,stability,early_stopping"
GUARDS = ["technique.ema.decay=0.99", "technique.early_stopping.patience=10"]
MUSIC = ["technique.musical_domain.smoothing=0.01"]
ENHANCED_SYNTHESIS = [
    "optimizer=adamw", "optimizer.lr=8e-5", "optimizer.weight_decay=5e-7", "scheduler=cosine_restarts", "scheduler.warmup=1500",
    f"technique=[{GUARDED},balance]", *GUARDS, "max_steps=-1", "trainer.max_epochs=500", "trainer.accumulate_grad_batches=2",
    "trainer.gradient_clip_val=0.8", "task.loss_weights={mel:22.0,kl:1.8,stop:1.0}", "task.huber=0.6",
    "task.mel_smoothing=0.025", "task.stop_smoothing=0.06",
]  # fmt: skip
SPELLED_OUT: dict[str, dict[str, list[str]]] = {  # by bundle, then by kind of task: the same in single options
    "level=basic": {
        "language_model": ["optimizer=adamw", "scheduler=noam", "technique=[]"],
        "vocoder": ["optimizer=adamw", "scheduler=noam", "technique=[]"],
        "encoder": ["optimizer=adamw", "scheduler=noam", "technique=[]"],
        "gan": ["optimizer=adam", "scheduler=noam", "technique=[]"],
        "synthesis": ["optimizer=adamw", "optimizer.lr=5e-5", "optimizer.weight_decay=1e-6", "scheduler=noam",
                      "scheduler.warmup=2000", "technique=[]", "max_steps=-1", "trainer.max_epochs=200",
                      "trainer.accumulate_grad_batches=16", "trainer.gradient_clip_val=1.0",
                      "task.loss_weights={mel:45.0,kl:1.0,stop:1.0}"],
    },
    "level=enhanced": {
        "language_model": ["optimizer=muon", f"technique=[{GUARDED},musical_domain]", *GUARDS, *MUSIC],
        "vocoder": ["optimizer=adamw", f"technique=[{GUARDED},balance]", *GUARDS],
        "encoder": ["optimizer=muon", f"technique=[{GUARDED}]", *GUARDS],
        "gan": ["optimizer=adam", f"technique=[{GUARDED},balance]", *GUARDS],
        "synthesis": ENHANCED_SYNTHESIS,
    },
    "level=experimental": {
        "language_model": ["optimizer=muon", f"technique=[{GUARDED},musical_domain,curriculum]", *GUARDS, *MUSIC,
                           "technique.musical_domain.equivariance=0.05"],
        "vocoder": ["optimizer=adamw", f"technique=[{GUARDED},balance]", *GUARDS],
        "encoder": ["optimizer=muon", f"technique=[{GUARDED}]", *GUARDS],
        "gan": ["optimizer=adam", f"technique=[{GUARDED},balance,fill_frames]", *GUARDS],
        "synthesis": ENHANCED_SYNTHESIS,
    },
    "convergence=fast": {
        "language_model": ["optimizer=muon", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
        "vocoder": ["optimizer=adamw", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
        "encoder": ["optimizer=muon", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
        "gan": ["optimizer=adam", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
        "synthesis": ["optimizer=muon", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
    },
}  # fmt: skip
DEFAULTS = {
    "language_model": ["optimizer=muon", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
    "vocoder": ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "technique.ema.decay=0.999"],
    "encoder": ["optimizer=muon", "scheduler=wsd", "technique=[ema]", "technique.ema.decay=0.99"],
    "gan": [
        "optimizer=adam",
        "scheduler=wsd_half",
        "technique=[ema,early_stopping]",
        "technique.ema.decay=0.999",
        "technique.early_stopping.patience=4",
        "technique.early_stopping.min_gain=0.01",
        "technique.early_stopping.finish=0.25",
    ],
    "grader": ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "technique.ema.decay=0.99"],
    "mel_inverter": ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "technique.ema.decay=0.99"],
    "mel_representation": ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "technique.ema.decay=0.99"],
    "synthesis": ["optimizer=muon", "scheduler=wsd_half", "technique=[ema]", "technique.ema.decay=0.99"],
}


def composed(*options: str) -> DictConfig:
    importlib.import_module("etude.run.programs")  # its resolvers
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(options))


def trained_with(*options: str) -> dict[str, Any]:
    cfg = composed(*options)
    OmegaConf.set_struct(cfg, False)
    for name in ("name", "logger"):  # they want a run's folder
        del cfg[name]
    found: Any = OmegaConf.to_container(cfg, resolve=True)
    return {**found, "technique": found.get("technique") or {}}


def kind(task: str) -> str:
    if task == "vae":
        return "language_model"
    if task in ("classifier", "representation", "few_shot", "few_shot_generation"):
        return "encoder"
    if task in ("grader", "mel_inverter", "mel_representation"):
        return "vocoder"
    return task if task in ("language_model", "vocoder", "synthesis") else "gan"


def of(target: str) -> str:
    return target.rpartition(".")[2]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("bundle", SPELLED_OUT)
def test_a_bundle_is_what_its_single_options_are(bundle: str, task: str) -> None:
    single = SPELLED_OUT[bundle][kind(task)]
    more = bundle in ("level=enhanced", "level=experimental")
    restarts = ["scheduler=cosine_restarts", "+huber=0.5"] if more else []
    found, expected = trained_with(bundle, f"task={task}"), trained_with(f"task={task}", *restarts, *single)
    assert found == expected
    for node in found["technique"].values():
        assert type(instantiate(node)).__module__.startswith("etude.techniques.")
    if kind(task) == "gan":
        assert found["task"]["huber"] == (0.5 if more else 0.0)


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_suit_the_task(task: str) -> None:
    assert trained_with(f"task={task}") == trained_with(f"task={task}", *DEFAULTS.get(task, DEFAULTS[kind(task)]))


def test_the_levels_of_synthesis_leave_what_the_user_says() -> None:
    own = ["task=synthesis", "level=basic", "optimizer=lion", "scheduler=cosine", "trainer.max_epochs=3", "max_steps=50"]
    cfg = composed(*own, "task.loss_weights.mel=7", "trainer=smoke")
    assert (cfg.optimizer.lr, cfg.scheduler.warmup) == (0.0006, 0.05)  # those of the chosen optimizer and schedule
    assert (cfg.trainer.max_epochs, cfg.max_steps, cfg.trainer.max_steps, cfg.task.loss_weights.mel) == (3, 50, 10, 7)
    assert composed("task=synthesis", "level=basic", "~scheduler").get("scheduler") is None
    assert trained_with("task=synthesis", "level=[]") == trained_with("task=synthesis")
    assert composed("task=vocoder", "level=enhanced").max_steps == 1200


def test_the_vocoder_keeps_its_steps() -> None:
    assert composed("task=vocoder").max_steps == 1200 and composed("task=style_transfer").max_steps == 5000


def test_fast_convergence_is_the_default_of_language_models() -> None:
    assert spelled_out(["fast_convergence=true", "seed=1"]) == ["convergence=fast", "seed=1"]
    assert spelled_out(["fast_convergence=true,false"]) == ["convergence=fast,[]"]
    assert trained_with(*spelled_out(["fast_convergence=false"])) == trained_with()
    assert trained_with("convergence=fast") == trained_with() and trained_with("data=folder", "convergence=fast") == trained_with(
        "data=folder"
    )
    with pytest.raises(ValueError, match="fast_convergence=yes: must be true or false"):
        spelled_out(["fast_convergence=yes"])


@pytest.mark.parametrize("bundle", SPELLED_OUT)
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


# --- experiments ---


def test_the_benchmark_does_not_depend_on_the_defaults() -> None:
    cfg = trained_with("experiment=jsb")
    assert cfg == trained_with("data=jsb", "optimizer=adamw", "scheduler=cosine", "technique=[ema,rdrop]",
                               "technique.ema.decay=0.995", "model.memory=true", "save_every=100", "max_steps=1200")  # fmt: skip
    assert (cfg["optimizer"]["lr"], cfg["optimizer"]["betas"], cfg["optimizer"]["weight_decay"]) == (0.0015, [0.9, 0.98], 0.1)
    assert (cfg["scheduler"]["warmup"], cfg["scheduler"]["final"]) == (0.05, 0.0)
    assert trained_with("experiment=jsb", "optimizer=schedule_free")["scheduler"]["_target_"] == "etude.optim.schedules.constant"


@pytest.mark.parametrize("bundle", SPELLED_OUT)
@pytest.mark.parametrize("experiment", ["jsb", "baseline"])
def test_a_bundle_wins_over_an_experiment(experiment: str, bundle: str) -> None:
    alone, both = trained_with(bundle), trained_with(bundle, f"experiment={experiment}")
    assert both["optimizer"] == alone["optimizer"] and both["scheduler"] == alone["scheduler"]
    assert {name for name, node in both["technique"].items() if "_target_" in node} == set(alone["technique"])


def test_the_trainer_and_a_stage_set_the_steps_of_an_experiment() -> None:
    assert composed("experiment=jsb", "trainer=smoke").trainer.max_steps == 10
    for stage in ("finetune", "polish"):
        assert composed("experiment=jsb", f"stage={stage}").trainer.max_steps == composed(f"stage={stage}").max_steps != 1200


def test_the_benchmarks_baseline_is_written_out() -> None:
    for data in ("data=jsb", "data=folder"):
        bare = trained_with("experiment=baseline", data)
        assert bare == trained_with(data, "optimizer=adamw", "scheduler=cosine", "technique=[]", "weights=null")
        assert trained_with("experiment=baseline", data, "technique=[swa]", "optimizer=lion") == trained_with(
            data, "optimizer=lion", "scheduler=cosine", "technique=[swa]", "weights=null"
        )
    free = trained_with("experiment=baseline", "optimizer=schedule_free")
    assert list(free["technique"]) == ["schedule_free"] and free["scheduler"]["_target_"] == "etude.optim.schedules.constant"


# --- what is not there ---


@pytest.mark.parametrize(
    ("program", "option", "choice"),
    [
        ("train", "genre=polka", "jazz"), ("train", "level=enhnaced", "enhanced"), ("train", "stage=pretran", "pretrain"),
        ("train", "experiment=jbs", "jsb"), ("train", "convergence=fats", "fast"),
        ("train", "technique=level/enhanced_musik", "early_stopping"),
        ("evaluation/evaluate", "task=langauge_model", "language_model"), ("transfer", "vocoder=grifin", "griffin_lim"),
    ],
)  # fmt: skip
def test_a_choice_that_is_not_there_is_refused_with_the_list(program: str, option: str, choice: str) -> None:
    folder, _, name = program.rpartition("/")
    wanted = rf"(?s)Could not find '{option.replace('=', '/')}'.*{choice}"
    with initialize_config_dir(str(CONF / folder), version_base="1.3"), pytest.raises(MissingConfigException, match=wanted):
        compose(name, overrides=[option])


def test_no_default_may_be_missing_silently() -> None:
    for path in CONF.rglob("*.yaml"):
        for entry in OmegaConf.load(path).get("defaults", []):
            assert not any("optional" in str(key) for key in (entry if OmegaConf.is_dict(entry) else [])), path


def test_pretraining_has_tokens_and_networks_that_a_folder_can_continue() -> None:
    assert spelled_out(["stage=pretrain"]) == ["stage=pretrain", "data=corpus"]
    pretrained, own = trained_with("stage=pretrain", "data=corpus"), trained_with("stage=finetune", "data=folder")
    assert pretrained["model"] == own["model"] and pretrained["tokenizer"] == own["tokenizer"]
    for own_choice in ("data=folk", "experiment=jsb", "task=vocoder"):
        assert spelled_out(["stage=pretrain", own_choice]) == ["stage=pretrain", own_choice]


def test_a_task_that_no_bundle_knows_gets_the_guards_alone() -> None:
    from etude.run.recipes import pick

    assert pick("probe", "language_model:a", "cut+stargan:b", "c") == "c" and pick("stargan", "cut+stargan:b", "c") == "b"
    with pytest.raises(ValueError, match=r"probe is none of cut\+stargan"):
        pick("probe", "cut+stargan:b")


def test_a_genre_without_a_preset_says_so() -> None:
    with pytest.raises(ValueError, match=r"genre=rock has no preset; presets: classical, .*, pop\. .* data\.root=my_songs/rock"):
        spelled_out(["data=folder", "genre=rock"], GENRES)
    with pytest.raises(ValueError, match="genre=rock has no preset"):
        spelled_out(["-m", "genre=pop,rock"], GENRES)
    assert spelled_out(["-m", "genre=pop,null", "--cfg", "job"], GENRES) == ["-m", "genre=pop,[]", "--cfg", "job"]


# --- runs ---


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


@pytest.mark.parametrize(
    ("task", "group"), [("representation", "objective"), ("mel_representation", "objective"), ("few_shot", "algorithm")]
)
def test_a_task_that_needs_a_choice_refuses_none(task: str, group: str) -> None:
    with pytest.raises(ValueError, match=f"{group}=null: task={task} needs one; leave {group}= out for the default"):
        spelled_out([f"task={task}", f"{group}=null"])
    assert spelled_out(["task=few_shot_generation", "algorithm=null"]) == ["task=few_shot_generation", "algorithm=[]"]
