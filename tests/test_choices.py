"""`make techniques` names every choice with its effect, and needs no installed package."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def listed(*groups: str) -> dict[str, str]:
    command = [sys.executable, "-I", "-S", str(ROOT / "scripts" / "choices.py"), *groups]  # the standard library alone
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = [line.strip().partition(" ") for line in lines if line.startswith("  ")]
    return {name: effect.strip() for name, _, effect in pairs}


@pytest.mark.parametrize("group", ["technique", "genre", "optimizer", "scheduler", "stage", "level"])
def test_every_choice_has_its_line(group: str) -> None:
    found = listed(group)
    assert found.keys() == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert all(effect and len(effect) < 160 for effect in found.values()), found


def test_what_a_technique_owns_is_said() -> None:
    found = listed("technique")
    assert "(owns evaluation weights)" in found["ema"] and "(may own backward and weighing)" in found["balance"]
    assert found["finite"].endswith("(acts on faults alone)")
