"""The forgetting matrix of style transfer and of classifiers: pairs of styles and classes as phases, exact, resumed, refused."""

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.technique import Technique
from etude.data.audio.module import StyleDataModule
from etude.metrics.audio.mel_distances import frechet_distance
from etude.models.symbolic.transformer import Transformer
from etude.tasks.classifier import Classifier
from etude.tasks.style_transfer import StyleTransfer
from etude.techniques.continual.agem import Agem
from etude.techniques.continual.ewc import Ewc
from etude.techniques.continual.forgetting import Forgetting
from etude.techniques.continual.gem import Gem
from etude.techniques.continual.meta_replay import MetaReplay
from etude.techniques.continual.packnet import PackNet
from etude.techniques.continual.replay import Replay
from etude.techniques.continual.si import Si
from etude.techniques.guards.early_stopping import EarlyStopping
from etude.techniques.optim.stages import Stages
from tests.data.audio.files import CONTRACT, SEGMENT, inline, module, sound, write
from tests.songs import write_songs
from tests.tasks.test_classifier_audio import task as audio_classifier
from tests.tasks.test_style_transfer import task as style_transfer
from tests.test_composition import build as built
from tests.test_composition import fit, halves, music
from tests.toys import same, trainer

STYLES = ("folk", "rock", "jazz")
PAIRS = [["folk", "rock"], ["folk", "jazz"]]


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten songs in three styles, each in every style, and next to them songs that differ between styles."""
    folder = tmp_path_factory.mktemp("styles")
    for place, style in enumerate(STYLES):
        for number in range(10):
            samples = (0.4 + 0.3 * place) * sound(number, seconds=0.5 + 0.1 * (number % 4), hertz=300.0 * (place + 1))
            write(folder / "paired" / style / f"song{number}.wav", samples)
            write(folder / "unpaired" / style / f"{style}{number}.wav", samples)
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        for kind in ("paired", "unpaired"):
            of(folder, kind).prepare()
    return folder


def of(folder: Path, kind: str = "paired", **options: Any) -> StyleDataModule:
    return module(folder / kind, folder / "cache", **{"styles": list(STYLES), "split": (0.6, 0.2, 0.2), **options})


def transfer(audio: Path, *, kind: str = "paired", **options: Any) -> tuple[StyleTransfer, StyleDataModule]:
    data = of(audio, kind)
    return style_transfer(contract=CONTRACT, statistics=data.statistics, seed=1, **{"shared": True, **options}), data


def run(made: tuple[Any, Any], folder: Path, *techniques: Technique, steps: int = 12) -> tuple[Any, Any]:
    task, data = made
    trainer(folder, max_steps=steps, callbacks=list(techniques), limit_val_batches=0).fit(task, datamodule=data)
    return task, data


def values(technique: Forgetting, measure: str) -> list[list[float]]:
    return [row["values"][measure] for row in technique.rows]


def test_the_matrix_is_that_of_separate_measurements(audio: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    technique = Forgetting()
    task, data = run(transfer(audio), tmp_path, Stages(each={"order": PAIRS}), technique)
    assert [row["after"] for row in technique.rows] == ["start", "folk+rock", "folk+jazz"]
    task.eval()
    for number, (one, other) in enumerate(PAIRS):
        errors, distances = [], []
        for source, target in ((one, other), (other, one)):
            fakes, reals = [], []
            for index in range(data.num_pieces("val", source)):
                x, y = data.log_mel("val", source, index), data.log_mel("val", target, index)
                assert data.piece("val", source, index).song == data.piece("val", target, index).song
                for start in range(0, min(x.shape[1], y.shape[1]) - SEGMENT + 1, SEGMENT):
                    x_mf, y_mf = (mel[:, start : start + SEGMENT] for mel in (x, y))
                    fakes.append(task.translate(x_mf[None], source=source, target=target)[0])
                    reals.append(y_mf)
            fake, real = torch.stack(fakes), torch.stack(reals)
            errors.append(float((fake - real).abs().mean()))
            frames = [mel.transpose(0, 1).flatten(1).numpy() for mel in (fake, real)]
            distances.append(frechet_distance(*frames))
        assert values(technique, "l1")[-1][number] == pytest.approx(sum(errors) / 2, rel=1e-4)
        assert values(technique, "frechet")[-1][number] == pytest.approx(sum(distances) / 2, rel=1e-3)
    assert "forgetting: frechet, bel^2, measured on" in caplog.text and "forgetting: l1, nats, measured on" in caplog.text
    with (tmp_path / "forgetting.csv").open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} == {"frechet", "l1"}


def test_networks_of_other_styles_forget_nothing_and_one_network_does(audio: Path, tmp_path: Path) -> None:
    found = {}
    for shared in (False, True):
        technique = Forgetting()
        run(transfer(audio, shared=shared), tmp_path / str(shared), Stages(each={}), technique)
        found[shared] = values(technique, "l1")
    start, first, last = found[False]
    assert start[0] != first[0] == last[0] and start[1] == first[1] != last[1]
    _, first, last = found[True]
    assert first[0] != last[0]


def test_audio_without_pairs_is_measured_by_its_distance_alone(audio: Path, tmp_path: Path) -> None:
    technique = Forgetting()
    run(transfer(audio, kind="unpaired"), tmp_path, technique, steps=2)
    assert list(technique.groups) == ["folk+jazz", "folk+rock", "jazz+rock"]  # one phase: every pair of styles
    assert list(technique.rows[0]["values"]) == ["frechet"]
    assert all(math.isfinite(value) for value in technique.rows[-1]["values"]["frechet"])


@pytest.mark.parametrize(
    ("each", "message"),
    [
        ({"order": ["folk", "rock"]}, r"pieces of folk only; StyleTransfer needs at least 2 of the styles .* \[folk, rock\]"),
        ({"order": [["folk", "ska"]]}, r"genre 'ska' has no training piece, so its phase would be empty; there are folk, rock"),
        ({"order": [["folk", "rock"]]}, r"a phase needs at least 2 styles, .*stage\.order=\[\[folk,rock\],\[folk,jazz\]\]"),
        ({"column": "mood"}, r"there is no column 'mood'; the columns are complexity_"),
    ],
)  # fmt: skip
def test_bad_phases_are_told(audio: Path, tmp_path: Path, each: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(transfer(audio), tmp_path, Stages(each=each), Forgetting())


def test_a_memory_brings_back_the_styles_that_are_over(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], set[str]]] = []
    remembered = Replay.extra_losses

    def heard(self: Replay, task: Any, batch: Any, losses: Any) -> dict[str, torch.Tensor]:
        found = remembered(self, task, batch, losses)
        seen.append((set(batch["style"].flatten().tolist()), set(found)))
        return found

    monkeypatch.setattr(Replay, "extra_losses", heard)
    technique = Replay(size=6, batch_size=3)
    run(transfer(audio), tmp_path, Stages(each={"order": PAIRS}), technique)
    assert [styles for styles, _ in seen] == [{0, 1}] * 6 + [{0, 2}] * 6
    assert not any(terms for _, terms in seen[:6])
    assert all({"generator/replay_cycle", "discriminator/replay_game"} <= terms for _, terms in seen[6:])
    (first,) = technique.memory.ended
    assert len(first) == len(technique.memory.current) == 3
    assert all(kept.example["style"].flatten().tolist() == [0, 1] for kept in first)
    assert all(kept.example["mel"].shape == (2, 1, 16, SEGMENT) for kept in first)


TECHNIQUES: dict[str, Callable[[], Technique]] = {
    "none": Forgetting,
    "replay": partial(Replay, size=6, batch_size=3),
    "ewc": partial(Ewc, strength=10.0, samples=3),
    "si": partial(Si, strength=10.0),
    "gem": partial(Gem, size=6, batch_size=2),
    "agem": partial(Agem, size=6, batch_size=2),
    "packnet": partial(PackNet, keep=0.5),
    "meta_replay": partial(MetaReplay, size=6, batch_size=3, cycle=2),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_each_technique_trains_style_after_style_and_resumes_exactly(audio: Path, tmp_path: Path, name: str) -> None:
    def trained(folder: Path, **options: Any) -> dict[str, Any]:
        own = [] if name == "none" else [TECHNIQUES[name]()]
        techniques = [Stages(each={"order": PAIRS, "max_steps": 5}), Forgetting(), *own]
        return fit(folder, lambda: transfer(audio), techniques, steps=10, **options)

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "half", kill_at=7)
    rest = trained(tmp_path / "rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])
    assert whole["callbacks"]["Forgetting"] == rest["callbacks"]["Forgetting"]
    if name != "none":
        plain = fit(tmp_path / "plain", lambda: transfer(audio), [Stages(each={"order": PAIRS, "max_steps": 5})], steps=10)
        assert not same(plain["trained"], whole["trained"])


def test_early_stopping_waits_for_the_last_of_the_phases(audio: Path, tmp_path: Path) -> None:
    stopping = EarlyStopping(patience=1, min_delta=1e9)
    task, data = transfer(audio)
    stages = Stages(each={"order": PAIRS, "max_steps": 12})
    fitted = trainer(tmp_path, max_steps=24, callbacks=[stages, stopping], val_check_interval=4, check_val_every_n_epoch=None)
    fitted.fit(task, datamodule=data)
    assert task.phases.index == 1 and fitted.global_step == 20  # the first of its validations is the best, and the second is not


# --- the data ---


def test_chosen_styles_are_alone_in_their_batches(audio: Path) -> None:
    data = of(audio)
    columns = data.held_out("test")
    assert {"name", "song", "genre", "frames"} <= columns.keys()
    whole = torch.cat([batch["mel"] for batch in data.test_dataloader()], dim=1)
    for style, name in enumerate(STYLES):
        batches = list(data.loader_of("test", columns["genre"] == name))
        assert all((batch["style"] == style).all() for batch in batches)
        assert len(torch.cat([batch["mel"] for batch in batches], dim=1)) == 1
    batches = list(data.loader_of("test", columns["genre"] != "rock"))
    assert all(batch["style"][:, 0].tolist() == [0, 2] for batch in batches)
    assert torch.equal(torch.cat([batch["mel"] for batch in batches], dim=1), whole[[0, 2]])  # all versions are of one length
    every = list(data.loader_of("test", np.ones(len(columns["name"]), bool)))
    assert torch.equal(torch.cat([batch["mel"] for batch in every], dim=1), whole) and "style" not in every[0]


def test_of_paired_audio_the_songs_that_every_style_has_are_left(audio: Path) -> None:
    data = of(audio)
    columns = data.held_out("val")
    songs = sorted(set(columns["song"].tolist()))
    assert len(songs) > 1
    chosen = (columns["genre"] == "folk") | ((columns["genre"] == "rock") & (columns["song"] == songs[0]))
    alone = (columns["genre"] != "jazz") & (columns["song"] == songs[0])
    found, expected = (list(data.loader_of("val", rows)) for rows in (chosen, alone))
    assert all(torch.equal(one["mel"], other["mel"]) for one, other in zip(found, expected, strict=True))
    apart = (columns["genre"] == "folk") & (columns["song"] == songs[0]) | (columns["genre"] == "rock") & (
        columns["song"] == songs[1]
    )
    with pytest.raises(ValueError, match=r"no segment of the chosen pieces of val is there in every style; choose others"):
        data.loader_of("val", apart)


# --- classifiers ---


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("classes") / "songs", count=40)


@pytest.mark.parametrize("column", ["genre", "half"])  # a head, by class and by the other head; half is of the user's table
def test_a_classifier_learns_class_after_class(songs: Path, tmp_path: Path, column: str) -> None:
    technique = Forgetting(column=column)
    task, data = run(built("classifier", songs), tmp_path, Stages(each={"column": column}), technique)
    columns, task = data.held_out("val"), task.eval()
    assert column in data.pieces()
    assert list(technique.groups) == sorted(set(columns[column].tolist()))
    right = {name: [] for name in technique.groups}
    for batch in data.evaluation_loader("val"):
        with torch.no_grad():
            logits = task.class_logits(batch)["genre"]
        truth = task.documents(batch, "label_genre")
        for piece, correct in zip(task.documents(batch).tolist(), (logits.argmax(-1) == truth).tolist(), strict=True):
            right[columns[column][piece]].append(float(correct))
    for number, name in enumerate(technique.groups):
        assert technique.rows[-1]["values"]["genre_accuracy"][number] == pytest.approx(np.mean(right[name]))


def test_pieces_without_a_value_are_in_no_phase(songs: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    training = music(songs).manifest("train")["file"].to_pylist()
    lines = [line.split(",") for line in halves(songs).read_text().splitlines()]
    table.write_text("\n".join(f"{file}," if file in training[::3] else f"{file},{half}" for file, half in lines))
    data = music(songs, controls=[], targets=["half"], labels_file=str(table))
    assert {None} < set(data.pieces()["half"].tolist())
    encoder = partial(Transformer, dim=16, num_layers=1, num_heads=2, causal=False)
    task = Classifier(model=encoder, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-3), **data.label_parts)
    technique = Forgetting(column="half")
    run((task, data), tmp_path, Stages(each={"column": "half"}), technique)
    assert task.phases.names == list(technique.groups) == ["first", "last"]


def test_a_classifier_of_audio_learns_style_after_style(audio: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = of(audio, targets=["style"])
    task = audio_classifier(labels=data.label_parts["labels"])
    technique = Forgetting()
    run((task, data), tmp_path, Stages(each={}), technique, Replay(size=6, batch_size=3), steps=18)
    assert task.phases.names == ["folk", "jazz", "rock"]
    assert np.shape(values(technique, "style_accuracy")) == (4, 3)
    assert values(technique, "style_accuracy")[1][0] == 1.0  # with one class there is nothing to confuse it with
