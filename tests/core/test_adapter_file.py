"""A file of adapters alone: joined with its base it is the run's model, bit for bit; another base is refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude.core.adapter_file import write_adapter
from etude.core.checkpoint_files import load_checkpoint
from etude.core.weights_file import digest_of, read_weights, write_weights
from etude.run.before_after import STARTED
from etude.run.export import export
from etude.techniques.weights.lora import Lora
from tests.core.test_kept_checkpoints import good
from tests.toys import PairsData, ToyGan, trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, and a run that adapts it and trains the biases of one layer."""
    folder = tmp_path_factory.mktemp("adapters")
    recipe = load_checkpoint(good(folder / "good.ckpt", weight=0.5))["etude"]["recipe"]
    torch.manual_seed(0)
    task = ToyGan(optimizer=partial(torch.optim.Adam, lr=0.05))
    base = {"state_dict": {n: v.clone() for n, v in task.state_dict().items()}, "global_step": 0}
    base["etude"] = {"recipe": recipe, "batches_trained": 0}
    at = write_weights(base, folder / "base.safetensors")
    task.recipe = {**recipe, STARTED: str(at)}
    fit = trainer(folder, max_steps=3, callbacks=[Lora(rank=1, also_train=["ab.0.bias"])])
    fit.fit(task, PairsData())
    fit.save_checkpoint(folder / "run.ckpt")
    return {"folder": folder, "base": at, "ckpt": folder / "run.ckpt", "task": task}


def exported(run: dict[str, Any], **options: Any) -> Path:
    cfg = {"ckpt": str(run["ckpt"]), "file": None, "outputs": "outputs", "overwrite": True, "adapter": False, "base": None}
    export(OmegaConf.create({**cfg, **options}))
    return Path(options["file"])


def test_joined_with_its_base_it_is_the_model_of_the_run(run: dict[str, Any], tmp_path: Path) -> None:
    file = exported(run, adapter=True, file=str(tmp_path / "a.safetensors"))
    held = read_weights(file)["state_dict"]
    layers = [f"{player}.{place}" for player in ("ab", "ba", "da", "db") for place in (0, 2)]
    assert held.keys() == {f"{layer}.{part}" for layer in layers for part in "ab"} | {"ab.0.bias"}
    whole, found = load_checkpoint(run["ckpt"]), load_checkpoint(file)
    assert found["state_dict"].keys() == whole["state_dict"].keys()
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert "adapter" not in found["etude"] and found["etude"]["recipe"] == whole["etude"]["recipe"]
    again = exported(run, ckpt=str(file), file=str(tmp_path / "whole.safetensors"))
    assert digest_of(load_checkpoint(again)["state_dict"]) == digest_of(whole["state_dict"])


def test_another_base_is_refused(run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported(run, adapter=True, file=str(tmp_path / "a.safetensors"))
    other = load_checkpoint(run["base"])
    other["state_dict"]["ab.0.weight"] += 1
    wrong = write_weights(other, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"adapts the weights \w{12} of .*base.safetensors, and .*wrong.safetensors has \w{12}"):
        load_checkpoint(file, base=wrong)
    with pytest.raises(ValueError, match=r"ab.0 was adapted from other weights than those of wrong; give base= of this run"):
        write_adapter(load_checkpoint(run["ckpt"]), other, tmp_path / "b.safetensors", name="wrong")
    with pytest.raises(ValueError, match="is for files of adapters, and this is a whole model"):
        load_checkpoint(run["ckpt"], base=wrong)
    with pytest.raises(ValueError, match=r"this checkpoint has no adapters; train with technique=\[lora\]"):
        write_adapter(load_checkpoint(run["base"]), other, tmp_path / "b.safetensors", name="base")
    with pytest.raises(ValueError, match=r"its base .* holds adapters alone; give the whole model"):
        load_checkpoint(file, base=file)
    moved = run["base"].rename(tmp_path / "moved.safetensors")
    try:
        with pytest.raises(ValueError, match=r"holds adapters of .*base.safetensors, which is not there; .*base=RUN. joins"):
            load_checkpoint(file)
        assert load_checkpoint(file, base=moved)["state_dict"].keys() == other["state_dict"].keys()
        with pytest.raises(SystemExit):
            exported(run, adapter=True, file=str(tmp_path / "c.safetensors"))
        assert "adapter=true needs what the run started from" in capsys.readouterr().err
        exported(run, adapter=True, base=str(moved), file=str(tmp_path / "c.safetensors"))
        assert load_checkpoint(tmp_path / "c.safetensors")["global_step"] == 3
    finally:
        moved.rename(run["base"])


@pytest.mark.parametrize("entry", [{}, {"base": 3}, {"base": "bundled"}, {"base": "bundled", "fingerprint": 1, "scales": 0}, [1]])
def test_malformed_adapters_are_told_in_one_line(run: dict[str, Any], tmp_path: Path, entry: Any) -> None:
    held = read_weights(exported(run, adapter=True, file=str(tmp_path / "a.safetensors")))
    held["etude"]["adapter"] = entry
    path = write_weights(held, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b.safetensors: .*") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
