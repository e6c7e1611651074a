"""Configurations cannot drift from the code: checked against signatures, nothing is built."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(p for p in CONF.rglob("*.yaml") if "hydra" not in p.relative_to(CONF).parts)
META = {"_target_", "_partial_", "_convert_", "_recursive_"}
NOT_SET = {  # arguments with a default that stand in no file: why. One without a default is handed over, or building fails
    "find": "another run's checkpoint, by parts.build_technique",
    "load": "likewise",
    "datamodule": "the data of a run that trained, by programs.train; generate.py has none",
    "sections": "what the report of a run shows before its samples, by programs.train",
    "draft": "another run's model, by programs.generate; while a model trains it samples alone",
    "draft_length": "likewise",
    "scheduler": "a group of its own",
    "algorithm": "likewise",
    "usual_rate": "the task's",
    "genres": "the data's",
    "trained_labels": "the data's, by programs.train",
    "infills": "of a language model: from the data",
    "label_dropout": "likewise",
    "feature_sizes": "the tokenizer's",
    "n_mels": "the data's mel contract's",
    "translator": "another run's model, by programs.perform",
    "restyling_vocoder": "likewise",
    "composer": "likewise",
    "style_dim": "the task's",
    "tokenizer": "the data's, of tasks that also take audio",
    "contract": "likewise, of audio",
    "labels": "the data's columns data.targets",
    "temperatures": "fitted in training; from the checkpoint",
    "border_thresholds": "likewise",
}


def targets(node: Any, trail: str = "") -> list[tuple[str, DictConfig]]:
    found = []
    if OmegaConf.is_dict(node):
        if "_target_" in node:
            found.append((trail, node))
        for key in node:
            if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
                continue
            found += targets(node[key], f"{trail}.{key}")
    return found


CASES = [
    pytest.param(path, node, id=f"{path.relative_to(CONF)}{trail}")
    for path in FILES
    for trail, node in targets(OmegaConf.load(path))
]


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("path", "node"), CASES)
def test_keys_are_the_parameters_and_values_the_defaults(path: Path, node: DictConfig) -> None:
    target = resolve(node["_target_"])
    parameters = inspect.signature(target).parameters
    keys = {str(key) for key in node} - META
    assert keys <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not node["_target_"].startswith("etude."):
        return
    missing = _defaults(target).keys() - keys - NOT_SET.keys()
    assert not missing, f"not to be set on the command line: {sorted(missing)}; write them into {path.name}"


def test_the_list_of_what_is_not_set_holds_nothing_superfluous() -> None:
    found: set[str] = set()
    for case in CASES:
        _, node = case.values
        if node["_target_"].startswith("etude."):
            found |= _defaults(resolve(node["_target_"])).keys() - {str(key) for key in node}
    assert found == NOT_SET.keys()


def test_technique_files_mirror_modules() -> None:
    for path in sorted((CONF / "technique").glob("*.yaml")):
        config = OmegaConf.load(path)
        assert list(config) == [path.stem]
        module, _, _ = config[path.stem]["_target_"].rpartition(".")
        assert module.startswith("etude.techniques.") and module.endswith(f".{path.stem}")


def _defaults(target: Any) -> dict[str, Any]:
    return {n: p.default for n, p in inspect.signature(target).parameters.items() if p.default is not p.empty}


@pytest.mark.parametrize("path", sorted((CONF / "technique").glob("*.yaml")), ids=lambda p: p.stem)
def test_technique_values_are_the_python_defaults(path: Path) -> None:
    node = OmegaConf.load(path)[path.stem]
    defaults = _defaults(resolve(node["_target_"]))
    for key in node:
        if key in META or OmegaConf.is_interpolation(node, key):
            continue
        value = OmegaConf.to_container(node)[key]
        expected = defaults[key]
        assert value == (list(expected) if isinstance(expected, tuple) else expected), key


SCHEDULES = [
    path for path in sorted((CONF / "scheduler").glob("*.yaml")) if OmegaConf.load(path)._target_.endswith(f".{path.stem}")
]


@pytest.mark.parametrize("path", [CONF / "model" / "grid.yaml", *SCHEDULES], ids=lambda p: p.stem)
def test_the_only_choice_of_a_class_has_the_python_defaults(path: Path) -> None:
    node = OmegaConf.load(path)
    defaults = _defaults(resolve(node["_target_"]))
    plain = {key for key in node if key not in META and not OmegaConf.is_interpolation(node, key)}
    assert {key: node[key] for key in plain} == {key: defaults[key] for key in plain}


@pytest.mark.parametrize("task", sorted(path.stem for path in (CONF / "task").glob("*.yaml")))
def test_a_task_leaves_the_users_choices_as_they_are(task: str) -> None:
    importlib.import_module("etude.run.programs")  # its resolver
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("train", overrides=[f"task={task}", "trainer=smoke"]).trainer.max_steps == 10
        for scheduler in sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml")):
            node = compose("train", overrides=[f"task={task}", f"scheduler={scheduler}"]).scheduler
            assert {str(key) for key in node} - META <= set(inspect.signature(resolve(node._target_)).parameters)
        assert compose("train", overrides=[f"task={task}", "~scheduler"]).get("scheduler") is None


def test_no_machine_paths_or_hosts() -> None:
    for path in FILES:
        text = re.sub(r"(?m)^  - (optional |override )?/[a-z_/]+[@:].*$", "", path.read_text())  # a file of another group
        assert not re.search(r"[\s\"']/[a-z]+/", text)
