"""Stages as a user calls them: each finds the run that it starts from, takes over what it must, and says so."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude.core.checkpoint_search import find_stage_checkpoint
from etude.core.task import Task
from etude.core.technique import Technique
from etude.run.parts import build_technique, load_task
from etude.run.recipes import fastest_precision, pinned, start_from
from etude.techniques.weights.ema import Ema
from tests.songs import write_songs
from tests.test_levels import composed
from tests.test_run import TINY, call, fails, program

STAGES = ("pretrain", "finetune", "polish", "progression")
SHAPE = [option for option in TINY if option.startswith("model.") or option == "data=folder"]
REST = [option for option in TINY if option not in SHAPE and not option.startswith("sampling.")]


def checkpoint(folder: Path) -> Any:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs and the outputs of a run of stage=pretrain."""
    home = tmp_path_factory.mktemp("recipes")
    write_songs(home / "songs")
    call("train", home / "outputs" / "broad", *SHAPE, *REST, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}",
         "~sampling", "stage=pretrain", "technique=[]", "optimizer=adamw")  # fmt: skip
    return home


def test_each_stage_starts_from_the_newest_run_of_the_one_before(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = home / "outputs"
    options = [*(o for o in REST if not o.startswith("data.")), f"cache_dir={home / 'cache'}", "~sampling", "technique=[]"]
    call("train", outputs / "own", *options, "stage=finetune")
    said = capsys.readouterr().err
    best = outputs / "broad" / "checkpoints" / "best.ckpt"
    assert f"stage=finetune starts from {best}" in said and "model.dim=32" in said and "data=folder" in said
    own = checkpoint(outputs / "own")
    recipe = own["etude"]["recipe"]
    assert recipe["model"]["dim"] == 32 and recipe["data"]["max_len"] == 256 and "model.dim=32" in recipe["overrides"]
    assert list(recipe["technique"]) == ["stages"] and recipe["technique"]["stages"]["stages"][0]["name"] == "finetune"
    assert recipe["name"] == "folder"  # the data's, not the default's

    broad = torch.load(best, weights_only=True)["state_dict"]
    moved = {name: float((own["state_dict"][name] - broad[name]).abs().max()) for name in broad}
    assert 0 < max(moved.values()) < 0.05  # from there, not from nothing

    call("train", outputs / "fine", *options, "stage=polish")
    assert f"stage=polish starts from {outputs / 'own' / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().err
    fine, start = checkpoint(outputs / "fine")["state_dict"], torch.load(outputs / "own/checkpoints/best.ckpt", weights_only=True)
    assert torch.equal(fine["model.embedding.weight"], start["state_dict"]["model.embedding.weight"])

    call("train", outputs / "other", *options, "stage=polish", f"weights={best}", "save_every=3")
    assert f"stage=polish starts from {best}" in capsys.readouterr().err

    call("train", outputs / "on", f"ckpt={outputs / 'fine'}", "trainer.max_steps=12")
    on = checkpoint(outputs / "on")
    assert on["global_step"] == 12 and on["etude"]["recipe"]["weights"] == "auto"  # not a checkpoint


@pytest.mark.parametrize(("stage", "after"), [("finetune", "pretrain"), ("polish", "finetune or pretrain")])
def test_without_such_a_run_one_line_says_so_before_any_data_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, after: str
) -> None:
    line = fails(capsys, "train", tmp_path / "outputs" / "x", f"stage={stage}", "data=folder", "data.root=nowhere")
    expected = f"starts from a run of stage={after}, but {tmp_path / 'outputs'}/ holds none; run `python train.py stage=pretrain`"
    assert expected in line and "weights=" in line


def test_a_newer_run_of_an_earlier_stage_gives_way(tmp_path: Path) -> None:
    def run(name: str, stage: str, age: int) -> Path:
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"etude": {"recipe": {"stage": {"name": stage, "after": None}}}}, path)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
        return path

    run("a", "pretrain", 1)
    old, new = run("b", "finetune", 3), run("c", "finetune", 2)
    assert find_stage_checkpoint(["finetune", "pretrain"], str(tmp_path), wanted="polish") == new
    (old.with_name("best.ckpt")).write_bytes(b"")
    os.utime(old, (2_000_000, 2_000_000))
    assert find_stage_checkpoint(["finetune"], str(tmp_path), wanted="polish") == old.with_name("best.ckpt")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "options", [[], ["technique=[]"], ["level=enhanced"], ["genre=classical"], ["optimizer=schedule_free"], ["task=vocoder"]]
)
def test_a_stage_goes_with_any_choice_of_techniques(stage: str, options: list[str]) -> None:
    plain, cfg = composed(*options), composed(*options, f"stage={stage}")
    added = set(cfg.get("technique") or {}) - set(plain.get("technique") or {})
    assert added == (set() if stage == "pretrain" else {"stages"}) and set(plain.get("technique") or {}) <= set(
        cfg.get("technique") or {}
    )
    assert cfg.stage.name == stage


def test_fast_convergence_continues_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"ckpt={home / 'outputs' / 'broad'}", "trainer.max_steps=12", "technique=[]", "optimizer=adamw"]
    call("train", home / "outputs" / "fast", *options, "fast_convergence=true")
    assert "continuing" in capsys.readouterr().err
    on = checkpoint(home / "outputs" / "fast")
    assert on["global_step"] == 12 and on["etude"]["recipe"]["scheduler"]["_target_"].endswith("wsd")


def test_a_run_from_when_adamw_was_the_default_goes_on_with_it(home: Path) -> None:
    then = ["optimizer=adamw", "scheduler=cosine", "technique=[ema]", "ema_decay=0.999", "max_steps=1200"]
    call("train", home / "outputs" / "then", *SHAPE, *REST, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}",
         "~sampling", *then)  # fmt: skip
    saved = checkpoint(home / "outputs" / "then")
    recipe = saved["etude"]["recipe"]
    recipe["overrides"] = [option for option in recipe["overrides"] if option not in then]
    recipe["fast_convergence"] = False  # a key of then
    del recipe["ema_decay"]
    torch.save(saved, home / "outputs" / "then" / "checkpoints" / "last.ckpt")
    call("train", home / "outputs" / "now", f"ckpt={home / 'outputs' / 'then'}", "trainer.max_steps=12")
    on = checkpoint(home / "outputs" / "now")["etude"]["recipe"]
    assert on["optimizer"] == recipe["optimizer"] and on["scheduler"] == recipe["scheduler"]
    assert on["technique"] == recipe["technique"] and set(then) <= set(on["overrides"])


def test_going_on_with_another_choice_drops_what_only_the_earlier_one_had(home: Path) -> None:
    options = [
        *SHAPE,
        *REST,
        f"data.root={home / 'songs'}",
        f"cache_dir={home / 'cache'}",
        "~sampling",
        "optimizer=adamw",
        "optimizer.lr=0.002",
    ]
    call("train", home / "outputs" / "first", *options, "technique=[ema]", "technique.ema.decay=0.9")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        call("train", home / "outputs" / "without", f"ckpt={home / 'outputs' / 'first'}", "technique=[]", "trainer.max_steps=12",
             "optimizer=adamw")  # fmt: skip
    recipe = checkpoint(home / "outputs" / "without")["etude"]["recipe"]
    assert not recipe.get("technique") and recipe["data"]["max_len"] == 256
    call("train", home / "outputs" / "with", f"ckpt={home / 'outputs' / 'first'}", "technique=[ema, finite]", "optimizer=adamw",
         "trainer.max_steps=12")  # fmt: skip
    recipe = checkpoint(home / "outputs" / "with")["etude"]["recipe"]
    assert recipe["technique"]["ema"]["decay"] == 0.9 and recipe["optimizer"]["lr"] == 0.002


def test_a_stage_has_its_own_length_whatever_the_experiment() -> None:
    assert composed("experiment=jsb", "stage=finetune").max_steps == composed("stage=finetune").max_steps


def test_a_stage_keeps_what_it_is_not_told_otherwise(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [o for o in REST if not o.startswith("data.")]
    call("train", home / "outputs" / "small", *options, f"cache_dir={home / 'cache'}", "~sampling", "stage=finetune",
         f"weights={home / 'outputs' / 'broad'}", "data.batch_size=1")  # fmt: skip
    assert f"starting from the weights of {home / 'outputs' / 'broad' / 'checkpoints' / 'best.ckpt'}" in capsys.readouterr().err
    recipe = checkpoint(home / "outputs" / "small")["etude"]["recipe"]
    assert recipe["data"]["batch_size"] == 1 and recipe["data"]["root"] == str(home / "songs")
    assert find_stage_checkpoint(["pretrain"], str(home / "outputs"), wanted="finetune", kind="language_model").is_file()
    with pytest.raises(ValueError, match=r"run `python train\.py stage=pretrain task=style_transfer` first"):
        find_stage_checkpoint(["pretrain"], str(home / "outputs"), wanted="finetune", kind="style_transfer")


def test_a_teacher_has_its_best_weights_and_stays_the_same_when_its_run_goes_on(home: Path) -> None:
    best = home / "outputs" / "broad" / "checkpoints" / "best.ckpt"
    teacher = "technique.distillation.teacher"
    node = OmegaConf.create({"_target_": "etude.techniques.loss.distillation.Distillation", "teacher": "last"})
    distillation = build_technique(node, str(home / "outputs" / "broad"))
    assert pinned(["seed=1"], []) == ["seed=1"]
    assert pinned(["seed=1", f"{teacher}=last"], [distillation]) == ["seed=1", f'{teacher}="{best}"']
    last = best.with_name("last.ckpt")  # of a student that an earlier version trained
    assert distillation._find(str(last), teacher) == last
    options = [*SHAPE, *REST, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling"]
    call("train", home / "outputs" / "student", *options, "technique=[distillation]",
         f"{teacher}={best.parents[1]}")  # fmt: skip
    call("train", home / "outputs" / "student_on", f"ckpt={home / 'outputs' / 'student'}", "trainer.max_steps=12")
    assert checkpoint(home / "outputs" / "student_on")["global_step"] == 12


def test_a_monitor_that_nothing_logs_is_told_before_training(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SHAPE, *REST, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling"]
    told = fails(capsys, "train", home / "outputs" / "none", *options, "monitor=val/nll2")
    assert "monitor is 'val/nll2', which nothing logs; there are" in told


RANKS = """
import runpy, sys
from etude.techniques.data.bandit import Bandit
from etude.techniques.data.curriculum import Curriculum
from etude.techniques.loss.distillation import Distillation

def told(name, what):
    def on_train_end(self, trainer, task):
        with open(f"{OUT}/{name}_{trainer.global_rank}", "w") as file:
            file.write(repr(what(self)))
    return on_train_end

OUT = sys.argv.pop(1)
Bandit.on_train_end = told("bandit", lambda t: (t.weights, t.changes))
Curriculum.on_train_end = told("curriculum", lambda t: [(first, times.tolist()) for first, times in t.tables])
Distillation.on_train_end = told("distillation", lambda t: [p.tolist() for p in t._projections])
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def test_all_ranks_choose_and_project_alike(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    rest = [o for o in REST if not o.startswith(("trainer", "max_steps"))]
    teacher = home / "outputs" / "broad"
    process = program(
        str(script), str(tmp_path), *SHAPE, *rest, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", "~sampling",
        f"outputs={tmp_path}", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp_fork",
        "trainer.precision=32", "trainer.val_check_interval=4", "max_steps=12", "technique=[bandit,curriculum,distillation]",
        "technique.bandit.every=2", "technique.bandit.num_arms=2", "technique.curriculum.difficulty=loss",
        f"technique.distillation.teacher={teacher}", "technique.distillation.features=1", "logger=[]",
    )  # fmt: skip
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    for name in ("bandit", "curriculum", "distillation"):
        first, second = ((tmp_path / f"{name}_{rank}").read_text() for rank in range(2))
        assert first == second, name


class Remembers(Technique):
    """Counts batches over runs."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.keeps, self.seen = keeps, 0

    def extra_losses(self, task: Task, batch: Any, losses: Any) -> dict[str, torch.Tensor]:
        self.seen += 1
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

    def carried_state(self, state: Any) -> dict[str, Any] | None:
        return dict(state) if self.keeps else None


def test_a_run_from_weights_carries_over_what_a_technique_says(home: Path) -> None:
    path = home / "outputs" / "broad" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["callbacks"]["Remembers"] = {"seen": 7}
    torch.save(saved, home / "with_state.ckpt")
    task, _ = load_task(path)
    for keeps, seen in ((True, 7), (False, 0)):
        technique = Remembers(keeps=keeps)
        start_from(task, home / "with_state.ckpt", [technique, Ema()])
        assert technique.seen == seen


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": False, "amx_bf16": True}, {"avx512_bf16": True}])
def test_bfloat16_is_the_default_only_where_the_machine_computes_in_it(
    able: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    expected = "bf16-mixed" if any(able.values()) else "32-true"
    assert [fastest_precision(name) for name in ("cpu", "auto", "gpu")] == [expected, expected, "bf16-mixed"]
