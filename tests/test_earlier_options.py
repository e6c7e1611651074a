"""The options of a run that an earlier version made still give its configuration when it is continued."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from etude.run.continuing import WITHOUT_SEED, continued
from tests.test_run import ROOT


def configured(earlier: list[str], *options: str, optimizer: str = "AdamW", former: bool = True) -> tuple[DictConfig, list[str]]:
    """The configuration of a run that goes on with `options` from one that had `earlier`, and the options that give it.

    former: the run is from when AdamW was the default.
    """
    recipe = {
        "task": {"_target_": "etude.tasks.language_model.LanguageModel"}, "optimizer": {"_target_": f"any.{optimizer}"},
        "max_steps": 1200, "overrides": earlier, **({"fast_convergence": False} if former else {}),
    }  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["ckpt=x.ckpt", *options], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return continued(cfg, {"etude": {"recipe": recipe}}, list(options), path=Path("x.ckpt"))


@pytest.mark.parametrize(
    ("earlier", "optimizer"),
    [
        ([], "AdamW"),
        (["stage=pretrain"], "AdamW"),
        (["stage=finetune", "weights=last"], "AdamW"),
        (["stage=polish", "technique.stages.seed=3"], "AdamW"),
        (["stage=progression", "data=folder", "data.root=songs"], "AdamW"),
        (["level=basic"], "AdamW"),
        (["level=enhanced"], "muon"),
        (["level=enhanced", "genre=classical", "technique.ema.seed=3"], "muon"),
        (["level=experimental", "technique.finite.seed=1"], "muon"),
        (["fast_convergence=true"], "muon"),
        (["fast_convergence=false", "optimizer=adamw"], "AdamW"),
        (["optimizer=schedule_free", "technique.schedule_free.seed=3"], "ScheduleFree"),
        (["technique=[ema,curriculum]", "technique.ema.seed=3", "technique.curriculum.seed=4"], "AdamW"),
        (["genre=polka", "seed=2"], "AdamW"),
    ],
    ids=str,
)
def test_the_options_of_an_earlier_version_still_compose(earlier: list[str], optimizer: str) -> None:
    cfg, options = configured(earlier, "seed=1", optimizer=optimizer)
    assert cfg.seed == 1 and cfg.max_steps == 1200 and cfg.ckpt == "x.ckpt"
    assert cfg.optimizer._target_.rpartition(".")[2] == optimizer
    assert not any(option.endswith(("seed=3", "seed=4", "polka")) for option in options)


@pytest.mark.parametrize("name", WITHOUT_SEED)
def test_a_seed_of_a_technique_that_draws_nothing_is_left_out(name: str) -> None:
    earlier = [f"technique=[{name}]", f"technique.{name}.seed=3", "optimizer=adamw"]
    cfg, options = configured(earlier, former=False)
    assert list(cfg.technique) == [name] and "seed" not in cfg.technique[name]
    assert options == [earlier[0], earlier[2]]


def test_a_technique_that_draws_keeps_its_seed() -> None:
    cfg, _ = configured(["technique=[balance]", "technique.balance.seed=3", "optimizer=adamw"], former=False)
    assert cfg.technique.balance.seed == 3


@pytest.mark.parametrize("former", [True, False])
def test_a_pretraining_goes_on_with_the_data_that_it_had(former: bool) -> None:
    """An earlier `stage=pretrain` trained on the chorales; today's says itself that its data are the corpus."""
    cfg, options = configured(["stage=pretrain", "optimizer=adamw"], former=former)
    assert cfg.data.corpus._target_.endswith(".Chorales") and "data=corpus" not in options
    cfg, _ = configured(["stage=pretrain", "data=corpus", "optimizer=adamw"], former=former)
    assert cfg.data.corpus._target_.endswith(".Everything")


def test_an_unknown_choice_of_a_run_of_today_is_told() -> None:
    with pytest.raises(Exception, match="polka"):
        configured(["genre=polka", "optimizer=adamw"], former=False)
