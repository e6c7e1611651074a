"""What a program starts from where the user names nothing: random weights, the newest run, or the model that comes with Etude."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from etude.core import bundled
from etude.core.weights_file import read_weights
from etude.run.parts import load_task
from etude.run.starting import check_start, model_to_sample, named_weights, starting_weights
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.lora import Lora
from tests.test_levels import composed

FOLDER = ["data=folder", "data.root=songs"]


class Pieces:
    """A data module of so many training pieces."""

    def __init__(self, count: int) -> None:
        self.num_training_pieces = count


def start(*options: str, pieces: int = 100) -> Path | None:
    cfg = composed(*options)
    recipe: Any = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("data", "model", "tokenizer")}
    return starting_weights(cfg, recipe, Pieces(pieces))


@pytest.mark.parametrize(
    ("options", "pieces", "expected"),
    [
        (FOLDER, 100, bundled.PATH), (FOLDER, bundled.MOST_PIECES + 1, None), ([*FOLDER, "weights=null"], 100, None),
        ([*FOLDER, "model.dim=64"], 100, None), ([*FOLDER, "tokenizer=tsd"], 100, None), ([], 100, None),
        (["data=folk"], 100, None), ([*FOLDER, "stage=pretrain"], 100, None), ([*FOLDER, "experiment=baseline"], 100, None),
        (["data=folk", "weights=bundled"], 100, bundled.PATH), ([*FOLDER, "tokenizer.form=true"], 100, bundled.PATH),
    ],
)  # fmt: skip
def test_a_folder_of_few_scores_starts_from_the_bundled_model(options: list[str], pieces: int, expected: Path | None) -> None:
    assert start(*options, pieces=pieces) == expected


def test_only_a_name_is_a_name() -> None:
    assert [named_weights(composed(f"weights={name}")) for name in ("auto", "null", "last")] == [None, None, "last"]


def test_without_a_run_the_bundled_model_is_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert model_to_sample(None, str(tmp_path)) == bundled.PATH
    assert "the model that comes with Etude" in capsys.readouterr().err
    assert model_to_sample("bundled", str(tmp_path)) == bundled.PATH
    with pytest.raises(ValueError, match="ckpt=last"):
        model_to_sample("last", str(tmp_path))


def test_the_bundled_model_is_small_and_names_no_place() -> None:
    task, _ = load_task(bundled.PATH)
    assert bundled.PATH.stat().st_size < 6_000_000
    assert task.infills and task.tokenizer.genres == ("chorales", "early", "folk")
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    recipe = read_weights(bundled.PATH)["etude"]["recipe"]
    assert not [text for text in texts(recipe) if text.startswith(("/", "~"))]
    assert bundled.CARD.is_file()


def texts(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


def test_adapters_need_trained_weights() -> None:
    check_start(bundled.PATH, [Lora()])
    check_start(None, [Ema()])
    with pytest.raises(ValueError, match=r"technique lora needs trained weights.*give weights=RUN, or weights=bundled"):
        check_start(None, [Ema(), Lora()])


def test_own_style_starts_from_the_bundled_model_or_says_why_not() -> None:
    mine = ["experiment=my_style", "data=folder", "data.root=songs"]
    assert start(*mine) == bundled.PATH and start(*mine, "model.dim=64") is None
    cfg = composed(*mine)
    assert list(cfg.technique) == ["lora", "ema", "early_stopping"] and cfg.optimizer._target_ == "torch.optim.AdamW"
