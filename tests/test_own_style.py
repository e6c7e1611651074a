"""experiment=my_style as a user calls it: from another run, with what was before in the report, stopped and continued."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude.core.checkpoint_files import load_checkpoint
from etude.run.before_after import STARTED
from etude.run.export import export
from tests import test_run
from tests.test_run import TINY, call, fails

home = test_run.home  # the fixture


def options(home: Path, *more: str) -> list[str]:
    mine = [f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}", f"weights={home / 'outputs' / 'one'}"]
    few = [
        "max_steps=4",
        "trainer.max_steps=4",
        "save_every=2",
        "trainer.val_check_interval=2",
        "technique.lora.rank=2",
        "before_after.num_samples=2",
        "before_after.num_bars=1",
    ]
    return ["experiment=my_style", *TINY, *mine, *few, *more]


def test_a_style_is_learned_told_and_handed_on(home: Path, tmp_path: Path) -> None:
    call("train", tmp_path / "mine", *options(home))
    best = load_checkpoint(tmp_path / "mine" / "checkpoints" / "best.ckpt")
    base = home / "outputs" / "one" / "checkpoints" / "best.ckpt"
    assert best["etude"]["recipe"][STARTED] == str(base)
    assert best["state_dict"].keys() == load_checkpoint(base)["state_dict"].keys()
    page = (tmp_path / "mine" / "report.html").read_text()
    assert page.index("Before and after") < page.index("samples/000.mid")
    told = (tmp_path / "mine" / "before_after.csv").read_text().splitlines()
    assert told[0] == "measure,before,after,the pieces themselves"
    assert told[1].startswith('"validation pieces, nats per token",')
    cfg: dict[str, Any] = {"ckpt": str(tmp_path / "mine"), "file": str(tmp_path / "style.safetensors"), "outputs": "outputs"}
    export(OmegaConf.create({**cfg, "overwrite": False, "adapter": True, "base": None}))
    wishes = ["num_samples=1", "num_bars=1", "audio=false", "max_new_tokens=100"]
    for name, ckpt in (("whole", tmp_path / "mine"), ("adapter", tmp_path / "style.safetensors")):
        call("generate", tmp_path / name, f"ckpt={ckpt}", *wishes)
    assert (tmp_path / "whole/samples/000.mid").read_bytes() == (tmp_path / "adapter/samples/000.mid").read_bytes()


def test_a_run_that_goes_on_ends_alike_and_remembers_its_start(home: Path, tmp_path: Path) -> None:
    call("train", tmp_path / "whole", *options(home))
    with pytest.raises(SystemExit):
        call("train", tmp_path / "half", *options(home, "stop_at=2"))
    call("train", tmp_path / "half", f"ckpt={tmp_path / 'half'}")
    one, two = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "half"))
    for entry in ("state_dict", "trained_weights"):
        assert all(torch.equal(value, two.get(entry, {})[name]) for name, value in one.get(entry, {}).items())
    tables = [(tmp_path / name / "before_after.csv").read_text() for name in ("whole", "half")]
    assert tables[0] == tables[1]


def test_what_cannot_be_told_is_refused_before_training(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silent = [option for option in options(home) if not option.startswith("sampling.")]
    told = fails(capsys, "train", tmp_path / "no", *silent, "~sampling")
    assert "before_after is part of the report that sampling= writes" in told
    told = fails(capsys, "train", tmp_path / "no", *options(home), "weights=null")
    assert "technique lora needs trained weights" in told
    call("train", tmp_path / "bare", *options(home, "before_after=null"))
    assert not (tmp_path / "bare" / "before_after.csv").exists()
