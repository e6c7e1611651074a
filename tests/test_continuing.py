"""A run that goes on does what its command asks for, or refuses it in one line."""

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from etude.core.technique import Technique
from etude.run.continuing import continued, takes_settings
from tests.songs import write_songs
from tests.test_run import ROOT, TINY, call

TECHNIQUES = sorted(path.stem for path in (ROOT / "conf" / "technique").glob("*.yaml"))


@functools.cache
def recipe(*options: str) -> Any:
    """The configuration of a run with these options, as its checkpoint has it."""
    cfg = compose("train", overrides=[*options, "logger=[]", "~sampling", "name=run"])  # these ask Hydra for the run's folder
    return {**OmegaConf.to_container(cfg, resolve=True), "overrides": list(options)}  # type: ignore[dict-item]


def going_on(earlier: list[str], *options: str, state: dict[str, Any] | None = None, **then: Any) -> tuple[DictConfig, list[str]]:
    """The configuration of a run that goes on, and the options that give it.

    earlier: the options of the run. state: of its techniques. then: what stood in its configuration otherwise than today.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["ckpt=x.ckpt", *options], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        kept = OmegaConf.create(recipe(*earlier))
        for place, value in then.items():
            OmegaConf.update(kept, place.replace("__", "."), value)
        checkpoint = {"etude": {"recipe": OmegaConf.to_container(kept)}, "callbacks": state or {}}
        return continued(cfg, checkpoint, list(options), path=Path("x.ckpt"))


SEEN, UNSEEN = {"best": 1.5}, {"best": float("inf")}


@pytest.mark.parametrize(
    ("technique", "option", "state"),
    [
        ("curriculum", "pacing=linear", {"Curriculum": UNSEEN}),
        ("curriculum", "difficulty=loss", {"Curriculum": UNSEEN}),
        ("bandit", "num_arms=3", {"Bandit": {}}),
        ("distillation", "num_sequences=5", {"Distillation": {"sequences": [1]}}),
        ("distillation", "projection_lr=0.5", {"Distillation": {"sequences": [], "projections": []}}),
        ("early_stopping", "monitor=val/other", {"EarlyStopping": SEEN}),
        ("switch_optimizer", "at=0.7", {"SwitchOptimizer": {**UNSEEN, "switched": {"step": 3}}}),
    ],
)
def test_what_a_technique_has_made_its_state_with_stays(technique: str, option: str, state: dict[str, Any]) -> None:
    chosen, asked = f"technique=[{technique}]", f"technique.{technique}.{option}"
    with pytest.raises(ValueError, match=rf"{asked}: the run that goes on can't take this, since .*weights=x\.ckpt") as error:
        going_on([chosen], chosen, asked, state=state)
    assert "\n" not in str(error.value)
    assert asked in going_on([chosen], chosen, asked)[1]  # a run in which the technique has remembered nothing yet
    going_on([chosen, asked], chosen, asked, state=state)  # no other value


def test_what_a_technique_has_not_used_yet_may_change() -> None:
    for technique, option, state in (
        ("early_stopping", "monitor=val/other", {"EarlyStopping": UNSEEN}),
        ("early_stopping", "patience=9", {"EarlyStopping": SEEN}),
        ("distillation", "num_sequences=5", {"Distillation": {"sequences": []}}), ("curriculum", "end=0.9", {"Curriculum": SEEN}),
        ("switch_optimizer", "at=0.7", {"SwitchOptimizer": {**UNSEEN, "switched": {}}}),
    ):  # fmt: skip
        going_on([f"technique=[{technique}]"], f"technique=[{technique}]", f"technique.{technique}.{option}", state=state)


def test_other_weights_and_settings_of_an_optimizer_that_was_switched_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights=other\.ckpt starts a new run, and ckpt=x\.ckpt goes on"):
        going_on([], "weights=other.ckpt")
    going_on(["weights=other.ckpt"], "weights=other.ckpt")  # the same command again
    state = {"SwitchOptimizer": {**UNSEEN, "switched": {"step": 3}}}
    with pytest.raises(ValueError, match=r"optimizer\.lr=0\.5: .*its optimizer has been switched"):
        going_on(["technique=[switch_optimizer]"], "optimizer.lr=0.5", state=state)


def test_a_default_that_has_changed_since_is_not_taken_for_a_request() -> None:
    cfg, options = going_on(["optimizer=adamw"], "max_steps=9", optimizer__lr=0.123, optimizer__betas=[0.8, 0.7])
    assert cfg.optimizer.lr == 0.123 and cfg.optimizer.betas == [0.8, 0.7]
    assert {"optimizer.lr=0.123", "optimizer.betas=[0.8, 0.7]"} <= set(options)
    cfg, _ = going_on(["optimizer=adamw"], "optimizer.weight_decay=0.5", optimizer__lr=0.123)
    assert cfg.optimizer.lr == 0.123 and cfg.optimizer.weight_decay == 0.5
    cfg, options = going_on(["technique=[bandit]"], "max_steps=9", state={"Bandit": {}}, technique__bandit__num_arms=7)
    assert cfg.technique.bandit.num_arms == 7 and "technique.bandit.num_arms=7" in options


def test_a_request_is_told_from_what_the_run_had() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        then = recipe("optimizer=adamw")
    cfg, _ = going_on(["optimizer=adamw"], "max_steps=9")
    assert not takes_settings(cfg, then)
    cfg, _ = going_on(["optimizer=adamw"], "optimizer.lr=0.5")
    assert takes_settings(cfg, then)


def test_a_run_of_style_transfer_from_before_it_could_end_early_keeps_its_length() -> None:
    """Those runs had 2,000 steps and an average alone; they are told by the option that came with the change."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        then = recipe("task=style_transfer", "cache_dir=here")
    then = {**then, "max_steps": 2000, "task": {k: v for k, v in then["task"].items() if k != "cycle_transposed"}}
    for options, steps, techniques in (
        ([], 2000, {"ema"}),
        (["max_steps=9000"], 9000, {"ema"}),
        (["technique=level/until_still"], 2000, {"ema", "early_stopping"}),
    ):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("train", overrides=["ckpt=x.ckpt", *options], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            found, _ = continued(cfg, {"etude": {"recipe": then}, "callbacks": {}}, options, path=Path("x.ckpt"))
        assert found.max_steps == found.trainer.max_steps == steps and set(found.technique) == techniques
    today, _ = going_on(["task=style_transfer"])
    assert today.max_steps == 5000 and set(today.technique) == {"ema", "early_stopping"}


def test_an_average_from_before_the_option_every_goes_on_with_each_step_unless_it_is_asked_for() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(cfg := compose("train", overrides=["ckpt=x.ckpt"], return_hydra_config=True))
        then = recipe("technique=[ema]")
        ema = {key: value for key, value in then["technique"]["ema"].items() if key != "every"}
        checkpoint = {"etude": {"recipe": {**then, "technique": {"ema": ema}}}, "callbacks": {"Ema": {"updates": 3}}}
        found, options = continued(cfg, checkpoint, ["max_steps=9"], path=Path("x.ckpt"))
        assert found.technique.ema.every == 1 and "technique.ema.every=1" in options  # so it does however often it is continued
        found, _ = continued(cfg, checkpoint, ["technique.ema.every=4"], path=Path("x.ckpt"))
        assert found.technique.ema.every == 4
        found, _ = continued(cfg, checkpoint, ["technique=[]"], path=Path("x.ckpt"))
        assert not found.get("technique")


def others(value: Any) -> list[Any]:
    """Other values of an option, one of which its technique may allow."""
    if isinstance(value, bool):
        return [not value]
    return [2 * value, value / 2, value + 1] if isinstance(value, int | float) else []


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_state_overrides_no_option(name: str) -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "technique" / f"{name}.yaml")[name])
    made: Any = get_class(node["_target_"])
    state = made().state_dict()
    for option, value in node.items():
        for other in others(value):
            try:
                technique: Technique = made(**{option: type(value)(other)})
            except ValueError:
                continue
            before = vars(technique).get(option)
            if state:
                technique.load_state_dict(state)
            assert vars(technique).get(option) == before, option


def test_the_optimizer_takes_the_settings_of_the_command_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_songs(tmp_path / "songs")
    tiny = [option for option in TINY if not option.startswith("sampling.")]
    here = [*tiny, f"data.root={tmp_path / 'songs'}", f"cache_dir={tmp_path / 'cache'}", "~sampling", "scheduler=constant"]
    call("train", tmp_path / "one", *here, "optimizer=adamw", "optimizer.lr=0.01", "trainer.max_steps=4", "technique=[]")
    capsys.readouterr()
    on = [f"ckpt={tmp_path / 'one'}", "trainer.max_steps=6", "trainer.val_check_interval=2"]
    call("train", tmp_path / "two", *on, "optimizer.lr=0.001", "optimizer.weight_decay=0.5")
    told = capsys.readouterr().err
    assert (
        "the optimizer goes on with " in told and "lr=0.001 instead of 0.01" in told and "weight_decay=0.5 instead of 0.1" in told
    )
    saved = torch.load(tmp_path / "two" / "checkpoints" / "last.ckpt", weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0} and all(group["lr"] == 0.001 for group in groups)
    assert saved["lr_schedulers"][0]["base_lrs"] == [0.001] * len(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call("train", tmp_path / "three", f"ckpt={tmp_path / 'two'}", "trainer.max_steps=8")
    assert "the optimizer goes on" not in capsys.readouterr().err
    again = torch.load(tmp_path / "three" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(group["lr"] == 0.001 for group in again["optimizer_states"][0]["param_groups"])
