"""`etude VERB` is the script of that name: one configuration, one results folder; and it starts at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etude.core.called import program
from etude.core.checkpoint_search import find_stage_checkpoint
from etude.run import cli

ROOT = Path(__file__).parents[1]


def said(*command: str, folder: Path = ROOT, code: int = 0) -> str:
    """What a program prints when it ends with `code`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "transfer"])
def test_a_verb_composes_what_its_script_composes(verb: str) -> None:
    options = ["outputs=elsewhere", "seed=3"] if verb != "transfer" else ["outputs=elsewhere", "style=folk"]
    show = ["--cfg", "all"]  # with Hydra's own part, which holds the results folder
    script = said(f"{verb}.py", *options, *show)
    assert said("-m", "etude.run.cli", verb, *options, *show) == script
    assert "dir: ${outputs}/${now:" in script and "outputs: elsewhere" in script
    assert f"  name: {verb}\n" in script  # Hydra's name of the job


def test_help_lists_every_verb_without_importing_what_is_slow() -> None:
    code = (
        "import sys; sys.argv = ['etude', '--help']; from etude.run.cli import main; main();"
        "print([m for m in ('torch', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    shown = said("-c", code)
    assert shown.endswith("[]\n")
    assert all(f"  {name}" in shown and verb.description in shown for name, verb in cli.VERBS.items())


def test_help_of_a_verb_needs_no_torch() -> None:
    code = (
        "import sys, atexit; sys.argv = ['etude', 'train', '--help']; from etude.run.cli import main;"
        "atexit.register(lambda: print('loaded:', [m for m in ('torch', 'pytorch_lightning') if m in sys.modules])); main()"
    )
    shown = said("-c", code)
    assert "Usage:    etude train [" in shown and "etude train data=folder data.root=" in shown
    assert "train.py" not in shown and "loaded: []" in shown


@pytest.mark.parametrize(
    ("started", "named"),
    [("/usr/bin/etude", "etude train"), ("src/etude/run/cli.py", "etude train"), ("train.py", "python train.py")],
)
def test_messages_name_the_program_as_it_was_called(started: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [started, "data=chorales"])
    assert program("train") == named
    with pytest.raises(ValueError, match=f"holds none; run `{named} stage=pretrain` first"):
        find_stage_checkpoint(["pretrain"], "no_outputs", wanted="finetune")


@pytest.mark.parametrize(
    ("verb", "guess"), [("trian", "did you mean train? "), ("evalute", "did you mean evaluate? "), ("xyz", "")]
)
def test_an_unknown_verb_is_one_line_with_the_list(verb: str, guess: str) -> None:
    line = said("-m", "etude.run.cli", verb, code=2)
    assert line == f"error: etude has no verb '{verb}'; {guess}the verbs are {', '.join(cli.VERBS)}\n"


@pytest.mark.parametrize("verb", cli.VERBS.values(), ids=list(cli.VERBS))
def test_every_verb_has_its_configuration_and_function(verb: cli.Verb) -> None:
    assert (cli.conf_folder() / f"{verb.config}.yaml").is_file()
    module, _, name = verb.function.partition(":")
    assert f"\ndef {name}(" in (ROOT / "src" / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize("program", [["train.py"], ["-m", "etude.run.cli", "train"]], ids=" ".join)
def test_training_understands_what_hydra_alone_would_not(program: list[str]) -> None:
    shown = said(*program, "fast_convergence=true", "task=vocoder", "--cfg", "job")
    assert "_target_: etude.optim.schedules.wsd" in shown
    line = said(*program, "genre=rock", "data=folder", code=2)
    assert line.startswith("error: genre=rock has no preset; presets: classical, ") and line.count("\n") == 1
    assert "level=enhnaced is unknown; did you mean enhanced? there are " in said(*program, "level=enhnaced", code=2)
