"""Robustness of trained classifiers: examples that stand alone, curves that fall, certificates below attacks, what is refused."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from etude.attacks.objectives import Fooled
from etude.core.alone import alone, owners
from etude.evaluation.robustness import attacking, certifying
from etude.evaluation.robustness.examples import Victim, check_classifier, held_out
from etude.evaluation.robustness.notes import score_notes, semitones
from etude.models.mel.plain_grader import PlainGraderNetwork
from etude.tasks.grader import Grader
from tests.robust import classifier, pair
from tests.songs import write_songs
from tests.tasks.test_classifier import batch as packed
from tests.tasks.test_classifier import task as small_classifier
from tests.tasks.test_grader import Graded, GradedData, as_batch
from tests.tasks.test_grader import task as grader
from tests.toys import ToyGan

PLAIN = partial(PlainGraderNetwork, channels=4, dim=16, num_layers=2)


@pytest.fixture(scope="module")
def trained() -> Grader:
    """A grader with a plain network, trained on the toy defects for a few steps."""
    task = grader(model=PLAIN, gamma=0.0)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    data = Graded(256)
    for step in range(150):
        rows = as_batch([data[(32 * step + i) % 256] for i in range(32)])
        optimizer.zero_grad()
        losses = task.losses(rows)
        (losses["clip"] + losses["frames"]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return task.eval()


def test_documents_stand_alone_with_the_same_logits() -> None:
    task, batch = small_classifier(head_dropout=0.0).eval(), packed()
    single = alone(task, batch)
    assert single["tokens"].shape == (4, 10) and task.documents(single).tolist() == [0, 1, 2, 3]
    assert (single["documents"] >= 0).sum(1).tolist() == [6, 7, 10, 6]
    assert task.documents(single, "label_metre").tolist() == [2, -1, 0, 1]
    assert torch.equal(owners(batch["documents"]), torch.where(batch["documents"] >= 0, batch["piece"], -1))
    for name, logits in task.class_logits(batch).items():
        torch.testing.assert_close(task.class_logits(single)[name], logits, atol=1e-5, rtol=1e-4)
        victim = Victim(task, single, name)
        known = task.documents(batch, f"label_{name}") >= 0
        given = victim.logits_of(victim.everything)(victim.values)
        torch.testing.assert_close(given, logits[known], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(victim.logits_of(torch.tensor([2]))(victim.values[2:3]), given[2:3], atol=1e-5, rtol=1e-4)


def test_mels_stand_alone(trained: Grader) -> None:
    rows = as_batch([Graded()[i] for i in range(6)])
    two = {name: value.unflatten(1, (2, 3)).squeeze(0) for name, value in rows.items()}  # two styles of three rows
    single = alone(trained, two)
    assert single["mel"].shape == (1, 6, 16, 20)
    for name, logits in trained.class_logits(two).items():
        torch.testing.assert_close(trained.class_logits(single)[name], logits)


def test_accuracy_falls_with_the_budget_and_is_written(trained: Grader, tmp_path: Path) -> None:
    options: dict[str, Any] = {"snr_db": [20, 60, 10], "num_examples": 24, "split": "val"}
    found = {}
    for name, score, more in (
        ("fgsm", attacking.score_fgsm, {}),
        ("pgd", attacking.score_pgd, {"steps": 8, "check_db": 15, "queries": 30}),
        ("ensemble", attacking.score_ensemble, {"steps": 8, "queries": 20}),
        ("cw", attacking.score_cw, {"steps": 60, "searches": 4, "learning_rate": 0.1}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        found[name] = score(task=trained, datamodule=GradedData(0), folder=folder, **options, **more)  # type: ignore[operator]
        assert {path.name for path in folder.iterdir()} >= {"robustness.csv", "robustness.png", "report.html"}
    for rows in found.values():
        assert len(rows) == 9 and [row["snr_db"] for row in rows[:3]] == [60, 20, 10]
        for head in trained.defects:
            mine = [row for row in rows if row["head"] == head]
            shares = [row["accuracy under attack"] for row in mine]
            assert all(row[attacking.BALANCED] <= row[attacking.CLEAN_BALANCED] for row in mine)
            assert mine[0]["clean accuracy"] >= shares[0] >= shares[1] >= shares[2]
    nearest = [row for row in found["cw"] if row["head"] == "hum"]
    assert nearest[0]["accuracy under attack"] == 1 > nearest[2]["accuracy under attack"]
    total = {name: sum(row["accuracy under attack"] for row in rows) for name, rows in found.items()}
    assert total["ensemble"] <= total["pgd"] <= total["fgsm"]
    loudest = [row for row in found["ensemble"] if row["snr_db"] == 10]
    noise, clean, under = (
        sum(row[name] for row in loudest) for name in ("accuracy under random noise", "clean accuracy", "accuracy under attack")
    )
    assert clean > 2.4 and noise > under and clean > under + 0.3, (clean, noise, under)
    with (tmp_path / "pgd" / "masking.csv").open() as file:
        checks = list(csv.DictReader(file))
    assert len(checks) == 6 * 3 and "does the defence hide its gradients" in (tmp_path / "pgd" / "report.html").read_text()


def test_rare_classes_count_as_much_as_others() -> None:
    """A classifier that always says the same withstands every attack, and is right about one class of two."""
    on: Any = [SimpleNamespace(true=torch.tensor([0, 0, 0])), SimpleNamespace(true=torch.tensor([0, 1]))]
    same = [torch.tensor([True, True, True]), torch.tensor([True, False])]
    assert attacking.mean_over_classes(on, same) == 0.5
    assert attacking.mean_over_classes(on, [torch.tensor([True, False, False]), torch.tensor([True, True])]) == 0.75


def test_signs_of_masked_gradients_are_named() -> None:
    def rows(*shares: float) -> list[dict[str, Any]]:
        return [{"head": "hum", attacking.UNDER: share} for share in shares]

    assert attacking.verdicts(rows(0.5, 0.4, 0.4, 0.38, 0.42, 0.0)) == ["hum: no sign of masked gradients"]
    said = attacking.verdicts(rows(0.3, 0.9, 0.5, 0.9, 0.1, 0.2))[0]
    for sign in ("one step breaks more", "without gradients breaks more", "had not converged", "as loud as the music"):
        assert sign in said


def test_certificates_are_below_attacks(trained: Grader, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "task": trained,
        "datamodule": GradedData(0),
        "folder": tmp_path,
        "num_examples": 24,
        "split": "val",
    }
    rows = certifying.score_ibp(**options, snr_db=[70, 40, 20], steps=8)
    assert all(row["certified accuracy"] <= row["accuracy under PGD"] <= row["clean accuracy"] for row in rows)
    shares = [row["certified accuracy"] for row in rows[:3]]
    assert shares[0] > 0.5 and shares == sorted(shares, reverse=True)
    layers = trained.layers("hum")
    mel = torch.stack([Graded()[i]["mel"] for i in range(4)])
    expected = trained.class_logits(as_batch([Graded()[i] for i in range(4)]))["hum"]
    torch.testing.assert_close(layers(mel), expected)
    smoothed = certifying.score_smoothing(**options, samples=60, selection=10, noise_db=15, snr_db=[60, 30, 5])
    shares = [row["certified accuracy"] for row in smoothed[:3]]
    assert smoothed[0]["accuracy of the smoothed classifier"] >= shares[0] >= shares[1] >= shares[2]
    assert shares[0] > 0.4 and shares[2] < shares[0]


def test_transfer_between_two_models_of_mels(trained: Grader, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = grader(model=PLAIN).eval()
    options: dict[str, Any] = {
        "datamodule": GradedData(0), "folder": tmp_path, "num_examples": 16, "split": "val", "snr_db": [40, 10],
        "find": lambda name, option: Path(name), "load": lambda path: (other, None), "transfer_from": "other",
    }  # fmt: skip
    attacking.score_fgsm(task=trained, **options)
    with (tmp_path / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 and {row["direction"] for row in rows} == {
        "from the other model to this one", "from this model to the other one"
    }  # fmt: skip
    apart = grader(model=PLAIN, defects=("click", "hiss"))
    with pytest.raises(ValueError, match=r"transfer_from=other: other has other heads"):
        attacking.score_fgsm(task=trained, **{**options, "load": lambda path: (apart, None)})


def test_a_classifier_of_scores_is_attacked_at_its_embeddings(tmp_path: Path) -> None:
    task, data = classifier(write_songs(tmp_path / "songs"))
    data.prepare_data()
    data.setup("fit")
    options: dict[str, Any] = {"task": task, "datamodule": data, "folder": tmp_path, "split": "val", "snr_db": [40, 0]}
    rows = attacking.score_pgd(**options, steps=5, check=False, norm="l2")
    assert {row["head"] for row in rows} == {"genre", "half"} and all(row["examples"] > 0 for row in rows)
    with pytest.raises(ValueError, match="embeddings are inputs of one model alone"):
        given = {"find": lambda name, option: Path(name), "load": lambda path: (task, None)}
        attacking.score_fgsm(**options, transfer_from="other", **given)
    changed = score_notes(task=task, datamodule=data, folder=tmp_path, split="val", notes=2, num_examples=2, heads=["half"])
    assert [row["notes"] for row in changed] == [0, 1, 2]
    shares = [row["accuracy under attack"] for row in changed]
    assert shares == sorted(shares, reverse=True) and all(
        row["accuracy after random changes"] >= row["accuracy under attack"] for row in changed
    )
    with pytest.raises(ValueError, match=r"robustness\.heads is empty; .* name some of "):
        score_notes(task=task, datamodule=data, folder=tmp_path, split="val", heads=[])
    with pytest.raises(ValueError, match=r"robustness\.notes=0 must be at least 1"):
        score_notes(task=task, datamodule=data, folder=tmp_path, notes=0)
    with pytest.raises(ValueError, match=r"robustness=notes changes notes of scores .* holds a Grader"):
        score_notes(task=grader(), datamodule=data, folder=tmp_path)
    tokens = torch.tensor([0, *data.tokenizer.encode(data.score("train", 0))[:9].tolist()])
    possible = semitones(data.tokenizer, tokens)
    for place, token in zip(*possible, strict=True):
        up, down = (int(data.tokenizer.transposition(shift)[tokens[place]]) for shift in (1, -1))
        assert int(token) in (up, down) and int(token) != int(tokens[place])
    with pytest.raises(ValueError, match=r"robustness=ibp needs a chain of layers .* Classifier does not offer"):
        certifying.score_ibp(**options)


def test_bad_input_is_told_in_one_line(trained: Grader, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": trained, "datamodule": GradedData(0), "folder": tmp_path, "split": "val"}
    for score, more, told in (
        (attacking.score_fgsm, {"snr_db": [40, -1]}, r"robustness\.snr_db=-1 must be at least 0 dB"),
        (attacking.score_fgsm, {"snr_db": []}, r"robustness\.snr_db is empty"),
        (attacking.score_fgsm, {"split": "train"}, "split=train is not held out"),
        (attacking.score_fgsm, {"num_examples": 0}, "num_examples=0 must be at least 1"),
        (attacking.score_fgsm, {"heads": ["genre"]}, r"robustness\.heads names genre; this classifier has click, hiss, hum"),
        (attacking.score_ensemble, {"attacks": ["fab"]}, r"robustness\.attacks names fab; choose among apgd_ce"),
        (certifying.score_smoothing, {"samples": 5}, r"samples=5 certify nothing at alpha=0\.001"),
        (certifying.score_smoothing, {"sigma": 0.0}, r"robustness\.sigma=0\.0 must be above 0"),
        (attacking.score_fgsm, {"task": ToyGan()}, "ckpt holds a ToyGan; give a run of task=classifier"),
    ):
        with pytest.raises(ValueError, match=told):
            score(**{**options, **more})  # type: ignore[operator]
    apart, _ = pair("classifier", tmp_path, sharing="soft")
    with pytest.raises(ValueError, match=r"robustness= can't change the inputs of this Classifier"):
        check_classifier(apart)
    with pytest.raises(ValueError, match=r"GraderNetwork is no chain of layers with bounds; train with model=grader_plain"):
        grader().layers("hum")


@pytest.mark.parametrize(
    ("score", "option", "value", "told"),
    [
        (attacking.score_pgd, "check_db", -3, r"robustness\.check_db=-3 must be at least 0 dB"),
        (attacking.score_pgd, "queries", 0, r"robustness\.queries=0 must be at least 1"),
        (attacking.score_pgd, "restarts", 0, r"robustness\.restarts=0 must be at least 1"),
        (attacking.score_ensemble, "attacks", [], r"robustness\.attacks is empty; give some of apgd_ce"),
        (attacking.score_ensemble, "targets", 0, r"robustness\.targets=0 must be at least 1"),
        (attacking.score_ensemble, "steps", 1, r"robustness\.steps=1 must be at least 2"),
        (attacking.score_cw, "searches", 0, r"robustness\.searches=0 must be at least 1"),
        (attacking.score_cw, "learning_rate", -1, r"robustness\.learning_rate=-1 must be above 0"),
        (certifying.score_smoothing, "selection", 0, r"robustness\.selection=0 must be at least 1"),
        (certifying.score_smoothing, "noise_db", -1, r"robustness\.noise_db=-1 must be at least 0 dB"),
        (certifying.score_ibp, "steps", 0, r"robustness\.steps=0 must be at least 1"),
    ],
)
def test_bad_options_are_told_before_data_are_read(trained: Grader, score: Any, option: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score(task=trained, datamodule=None, folder=Path("nowhere"), **{option: value})


@pytest.mark.parametrize(
    ("score", "options", "told"),
    [
        (attacking.score_pgd, {"check": False, "check_db": 30}, r"check_db=30 is of the check, which robustness\.check=false"),
        (attacking.score_pgd, {"check": False, "queries": 9}, r"queries=9 is of the check, which robustness\.check=false"),
        (
            attacking.score_ensemble,
            {"attacks": ["apgd_ce"], "targets": 3},
            r"targets=3 is of apgd_targeted, which robustness\.att",
        ),
        (attacking.score_ensemble, {"attacks": ["apgd_ce"], "queries": 9}, r"queries=9 is of square, which robustness\.attacks"),
        (certifying.score_smoothing, {"sigma": 0.1, "noise_db": 30}, r"sigma=0\.1 and robustness\.noise_db=30 both say how loud"),
    ],
)
def test_an_option_without_effect_is_told(trained: Grader, score: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score(task=trained, datamodule=None, folder=Path("nowhere"), **options)


def test_another_model_is_found_before_the_attack(trained: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacking, "curve", lambda *_: pytest.fail("attacked first"))
    apart = grader(model=PLAIN, defects=("click", "hiss"))
    with pytest.raises(ValueError, match=r"transfer_from=other: other has other heads"):
        attacking.score_fgsm(
            task=trained, datamodule=GradedData(0), folder=tmp_path, split="val", transfer_from="other",
            find=lambda name, option: Path(name), load=lambda path: (apart, None),
        )  # fmt: skip


def test_an_attack_leaves_the_model_as_it_was(trained: Grader) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    batch = held_out(trained, GradedData(0), split="val", num=8, seed=0)[0]
    with attacking.attacked(trained):
        victim = Victim(trained, batch, "hum")
        record = Fooled(victim.logits_of(victim.everything), victim.values, victim.true, victim.budget(20, "linf"))
        attacking.fgsm(record.loss(), victim.values, record.budget)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in trained.parameters())
    assert isinstance(trained.model, nn.Module) and not trained.training
