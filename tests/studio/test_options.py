"""The options of a listening test: those of conf/listen.yaml, each wrong one refused in a line that says what is right."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from etude.studio.options import Options, listener

CONF = Path(__file__).parents[2] / "conf" / "listen.yaml"
DEFAULTS = asdict(Options())


def test_the_configuration_has_the_keys_and_defaults_of_the_code() -> None:
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF), resolve=True)
    del node["defaults"], node["hydra"]
    assert node == {**DEFAULTS, "runs": []} and asdict(Options.checked(node)) == DEFAULTS


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"questions": 0}, "questions is 0, must be a whole number from 2 to 1000"),
        ({"questions": "ten"}, "questions is ten, must be"),
        ({"questions": 7}, "questions is 7, must be even, since half of them are real; set questions=8"),
        ({"seconds": 0.5}, "seconds is 0.5, must be a number from 1 to 120"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": True}, "seconds is True"),
        ({"mode": "triples"}, "mode is triples, must be single or pairs"),
        ({"start": "end"}, "start is end, must be beginning or anywhere"),
        ({"report": "yes"}, "report is yes, must be true or false"),
        ({"report": 1}, "report is 1, must be true or false"),
        ({"port": 70000}, "port is 70000, must be a whole number from 0 to 65535"),
        ({"questions": 400}, "questions=400 of seconds=10 are 1.1 hours of music, at most one can be listened to; lower one"),
        ({"results": "a.html"}, "results is a.html, a database beside which the report is written as .html; name it .sqlite"),
        ({"report": True, "name": "Ann", "seed": 1}, "report=true shows all answers in results=, .*; leave seed, name out"),
        ({"name": "  "}, "name is empty; give a name or a nickname"),
        ({"name": "x" * 99}, "name has 99 characters, at most 60"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        Options.checked({**DEFAULTS, **given})
    assert "\n" not in str(error.value)


def test_one_run_needs_no_brackets_and_pairs_may_be_odd() -> None:
    assert Options.checked({**DEFAULTS, "runs": "last"}).runs == ("last",)
    assert Options.checked({**DEFAULTS, "mode": "pairs", "questions": 7, "name": 7}).name == "7"
    assert listener("  Ann \n Lee\t") == "Ann Lee"
