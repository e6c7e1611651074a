"""Every space that comes with Etude fits the settings that it is for, and refuses nothing in its range."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

import etude.run.recipes  # noqa: F401  # the resolvers that conf/ calls
from etude.run.parts import build_technique, instantiate
from etude.run.search_space import space_files, space_of
from etude.sweeps.space import all_dimensions, examples

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = {
    "optimizer": [],
    "regularisation": [],
    "architecture": ["data=folder"],
    "pacing": ["technique=[ema,curriculum,length_warmup]"],
    "style_transfer": ["task=style_transfer"],
    "augmentation": ["task=classifier", "technique=[randaugment]"],
    "augmentation_music": ["technique=[randaugment]"],
    "musical": ["technique=[ema,live_quality,musical_domain]"],
}


def test_every_space_is_tried() -> None:
    assert OPTIONS.keys() == {path.stem for path in (CONF / "sweep" / "space").glob("*.yaml")}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_space_fits_its_settings(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        space = space_of(parser.parse_overrides(OPTIONS[name]), space_files(name, CONF))
        assert len(list(all_dimensions(space))) >= 4
        for example in examples(space):
            cfg = compose("train", overrides=[*OPTIONS[name], *example])
            for part in ("optimizer", "scheduler"):
                instantiate(cfg[part])
            for technique in (cfg.technique or {}).values():
                build_technique(technique)


def test_shape_and_regularisation_go_together() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        space = space_of(parser.parse_overrides(["data=folk"]), space_files(["architecture", "regularisation"], CONF))
        for example in examples(space):
            compose("train", overrides=["data=folk", *example])


def test_a_choice_of_the_command_line_keeps_its_own_options() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        space = space_of(parser.parse_overrides(["optimizer=muon,lion"]), space_files("optimizer", CONF))
    names = [dimension.name for dimension in all_dimensions(space)]
    assert "optimizer.adamw_lr@muon" in names and "optimizer.lr@lion" in names and "optimizer.lr@soap" not in names
