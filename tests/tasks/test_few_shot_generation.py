"""A generator for new styles: without an algorithm it is a language model, with one it adapts; the comparison is fair."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.adapters import adapters_of
from etude.data.scores.unseen_styles import UnseenStyles
from etude.evaluation import few_shot_generation
from etude.evaluation.few_shot_generation import _MAKERS, Draw, _joined, _started, _with_adapters, nats, score_few_shot_generation
from etude.evaluation.token_ngrams import TokenNgrams
from etude.models.symbolic.transformer import Transformer
from etude.objectives.maml import Fomaml, Maml
from etude.objectives.prototypical import Prototypical
from etude.objectives.reptile import Reptile
from etude.tasks.episode_loops import episodes
from etude.tasks.few_shot_generation import FewShotGeneration
from etude.tasks.language_model import LanguageModel
from tests.paradigms.harness import KILLS, assert_learns_episodes, assert_resumes
from tests.tasks.test_few_shot import music, write_classes
from tests.toys import trainer

NETWORK = partial(Transformer, dim=16, num_layers=1, num_heads=2)
ALGORITHMS: dict[str, Any] = {
    "none": None, "reptile": Reptile, "fomaml": partial(Fomaml, clusters=2, cluster_by="gradient"),
    "maml": partial(Maml, steps=2, learn_rates=True),
}  # fmt: skip
STYLES = [f"class{number}" for number in range(9)]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("styles") / "songs")


def styles(songs: Path, **options: Any) -> Any:
    corpus = UnseenStyles(str(songs), val=STYLES[3:6], test=STYLES[6:])
    return music(songs, **{"corpus": corpus, "ways": 1, "shots": 2, "queries": 2, **options})


def task(songs: Path, algorithm: str = "reptile", **data: Any) -> tuple[FewShotGeneration, Any]:
    torch.manual_seed(0)
    module = styles(songs, workers=data.pop("num_workers", 0), **data)
    return FewShotGeneration(
        model=NETWORK, algorithm=ALGORITHMS[algorithm], optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1,
        tokenizer=module.tokenizer, ways=module.ways,
    ), module  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_resumes(tmp_path: Path, songs: Path, algorithm: str) -> None:
    assert_resumes(tmp_path, lambda: task(songs, algorithm), kill=KILLS[1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_learns(tmp_path: Path, songs: Path, algorithm: str) -> None:
    model, data = task(songs, algorithm, transpose=None)
    assert_learns_episodes(tmp_path, model, data, by=0.5)


def test_without_an_algorithm_it_is_the_language_model(songs: Path) -> None:
    model, data = task(songs, "none")
    other = LanguageModel(model=NETWORK, tokenizer=data.tokenizer, optimizer=torch.optim.SGD)
    other.load_state_dict(model.state_dict())
    batch = next(iter(data.train_dataloader()))
    assert model.losses(batch)["nll"] == other.losses(batch)["nll"]
    (_, query), *_ = episodes(batch)
    one = {name: value[batch["episode"].amax(1) == 0] for name, value in batch.items()}
    assert model.measure(one)["nll"].mean == other.measure(query)["nll"].mean
    assert model.terms == ("nll",) and model.example_axis == 0 and model.inner_rates() is None


@pytest.mark.parametrize("algorithm", ["reptile", "maml"])
def test_validation_adapts_to_the_support_and_asks_about_the_queries(songs: Path, algorithm: str) -> None:
    model, data = task(songs, algorithm)
    planner = data.planner("val", seed=0)
    batch = data.batch(planner, planner.rows(0))
    ((support, query),) = episodes(batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        found = model.measure(batch)
        expected = model.losses_at(query)["nll"]
    assert float(found["nll_before"].mean) == pytest.approx(float(expected))
    assert found["nll"].mean < found["nll_before"].mean
    weights = model.adapted(support)
    assert float(model.losses_at(query, parameters=weights)["nll"]) == pytest.approx(float(found["nll"].mean), rel=1e-4)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_a_language_model_starts_from_it_and_it_from_a_language_model(tmp_path: Path, songs: Path, algorithm: str) -> None:
    model, data = task(songs, algorithm)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    plain = LanguageModel(model=NETWORK, tokenizer=data.tokenizer, optimizer=torch.optim.SGD)
    plain.load_state_dict(plain.weights_from(saved, tmp_path / "end.ckpt"))
    batch = next(iter(data.val_dataloader()))
    torch.testing.assert_close(plain.logits(batch), model.logits(batch))
    again, _ = task(songs, algorithm)
    again.load_state_dict(again.weights_from(saved, tmp_path / "end.ckpt"))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    own = {"state_dict": plain.state_dict(), "etude": saved["etude"]}
    fresh, _ = task(songs, algorithm)
    fresh.load_state_dict(fresh.weights_from(own, tmp_path / "end.ckpt"))
    torch.testing.assert_close(fresh.logits(batch), plain.logits(batch))


def test_only_algorithms_that_adapt_weights_are_taken(songs: Path) -> None:
    with pytest.raises(ValueError, match="task=few_shot_generation adapts weights, and Prototypical compares vectors"):
        FewShotGeneration(
            model=NETWORK, algorithm=Prototypical, optimizer=torch.optim.SGD, ways=1, tokenizer=styles(songs).tokenizer
        )


# --- the data ---


def test_whole_styles_are_one_split(songs: Path) -> None:
    split = {source.genre: source.split for source in UnseenStyles(str(songs), val=["class1"], test=["class0", "class8"]).files()}
    assert split == {name: "train" for name in STYLES} | {"class1": "val", "class0": "test", "class8": "test"}
    data = styles(songs)
    for part, names in (("train", STYLES[:3]), ("val", STYLES[3:6]), ("test", STYLES[6:])):
        assert set(data.members(part, ways=1, shots=2, queries=2)["genre"]) == set(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": ["class1"]}, "data.corpus.test names no style that is left out of training; name some of class0, class1"),
        ({"val": ["class1"], "test": ["swing"]}, "data.corpus.test names swing, which is no subfolder; there are class0"),
        ({"val": ["class1"], "test": ["class1"]}, "data.corpus.val and data.corpus.test both name class1"),
        ({"val": STYLES[:4], "test": STYLES[4:]}, "name all styles; leave one at least for training"),
    ],
)
def test_styles_that_are_not_there_are_told(songs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnseenStyles(str(songs), **options).files()


# --- the comparison ---


def test_methods_start_alike_and_adapt_what_they_say(songs: Path) -> None:
    model, data = task(songs, "reptile")
    draw = Draw(model, data, data.planner("test", seed=0, ways=1, shots=2, queries=2), "test", 0)
    assert len(draw.support) == 2 and draw.notes > 0
    own = nats(model, draw.queries) / draw.notes
    curves = {name: _MAKERS[name](model, 0)(draw, 2, 0.01, [0, 4], 1) for name in ("all", "adapters", "inner")}
    assert all(curve[0] == pytest.approx(own, rel=1e-6) for curve in curves.values())
    assert all(curve[1] < curve[0] for curve in curves.values()) and len({curve[1] for curve in curves.values()}) == 3
    held = _with_adapters(_started(model, draw, 2), 0)
    trained = {name for name, p in held.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".0.a", ".0.b")) for name in trained) and adapters_of(held)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_the_algorithms_own_steps_are_those_of_its_inner_loop(songs: Path) -> None:
    model, data = task(songs, "maml")
    draw = Draw(model, data, data.planner("test", seed=0, ways=1, shots=2, queries=2), "test", 0)
    found = _MAKERS["inner"](model, 0)(draw, 2, 0.0, [3], 2)
    weights = model.adapted(_joined(draw.support), steps=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.get(name, parameter))
    assert found[0] == pytest.approx(nats(model, draw.queries) / draw.notes, rel=1e-4)


def test_evaluation_shows_floors_beside_the_methods(tmp_path: Path, songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = task(songs, "reptile")
    options: dict[str, Any] = {"pieces": [1, 2], "steps": [0, 2], "queries": 2, "draws": 2, "rates": [0.003, 0.01]}
    rows = score_few_shot_generation(task=model, datamodule=data, folder=tmp_path, **options)
    assert len(rows) == 4 + 4 * 2 * 2 and all(row["nats_per_note"] > 0 for row in rows)
    assert "n-grams of these pieces" in capsys.readouterr().out
    with (tmp_path / "few_shot_generation.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    single = {**options, "draws": 1, "methods": ["all"], "pieces": [1]}
    (tmp_path / "single").mkdir()
    score_few_shot_generation(task=model, datamodule=data, folder=tmp_path / "single", **single)
    assert "nan" not in capsys.readouterr().out + (tmp_path / "single" / "few_shot_generation.csv").read_text()
    for wrong, message in (
        ({"split": "train"}, "task.split=train is not held out"), ({"draws": 0}, r"task.draws=\[0\] must be at least 1"),
        ({"rates": []}, r"task.rates=\[\] must be"), ({"methods": ["some"]}, "task.methods names some; this model has all"),
        ({"pieces": [3]}, r"task.pieces=\[3\] and task.queries=2 take 5 different pieces, which the .* split has of no style"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            score_few_shot_generation(task=model, datamodule=data, folder=tmp_path, **{**options, **wrong})
    plain, data = task(songs, "none")
    with pytest.raises(ValueError, match=r"task\.methods names inner; this model has all, adapters, scratch"):
        score_few_shot_generation(task=plain, datamodule=data, folder=tmp_path, methods=["inner"])


def test_rates_are_chosen_on_pieces_that_are_not_shown(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[tuple[str, int]]()

    class Noted(Draw):
        def __init__(self, task: Any, data: Any, planner: Any, split: str, number: int) -> None:
            drawn.append((split, number))
            super().__init__(task, data, planner, split, number)

    monkeypatch.setattr(few_shot_generation, "Draw", Noted)
    model, data = task(songs, "reptile")
    options: dict[str, Any] = {"pieces": [1], "steps": [1], "queries": 2, "draws": 2, "rates": [0.003], "methods": ["inner"]}
    for split in ("val", "test"):
        score_few_shot_generation(task=model, datamodule=data, folder=tmp_path, split=split, **options)
    assert drawn == [("val", 0), ("val", 1), ("val", 2), ("test", 0), ("test", 1), ("val", 0)]


def test_ngrams_are_a_distribution_and_count() -> None:
    model = TokenNgrams(3, order=2).add([np.array([0, 1, 0, 1, 2])])
    for before in ([0], [1], [2], []):
        chances = [np.exp(-model.nats(np.array([*before, token]))[-1]) for token in range(3)]
        assert sum(chances) == pytest.approx(1)
    first = (2 + 3 / 3) / (5 + 3)  # of token 0: 2 of 5, and 3 different tokens share the rest evenly
    assert np.exp(-model.nats(np.array([0]))[0]) == pytest.approx(first)
    second = (2 + 1 * (2 + 3 / 3) / (5 + 3)) / (2 + 1)  # of 1 after 0: 2 of 2, and one different token
    assert np.exp(-model.nats(np.array([0, 1]))[1]) == pytest.approx(second)
