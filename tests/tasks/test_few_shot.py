"""Few shots: episodes keep to a split, training learns and resumes exactly, evaluation shows floors, bad requests are refused."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.gradients import outputs_at
from etude.data.scores.corpora import Folder
from etude.data.scores.episodes import EpisodeModule, EpisodeSampler
from etude.data.scores.essen import ENDS, TuneFamilies, _place, families, regions
from etude.evaluation.few_shot import of_beginnings, score_few_shot
from etude.models.symbolic.transformer import Transformer
from etude.objectives.alignment import Alignment
from etude.objectives.maml import Fomaml, Maml
from etude.objectives.masked import Masked
from etude.objectives.matching import Matching
from etude.objectives.prototypical import Prototypical
from etude.objectives.reptile import Reptile
from etude.tasks.episode_loops import episodes
from etude.tasks.few_shot import FewShot
from etude.tasks.representation import Representation
from etude.tokens.grammar import BOS, CONT
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.rows import packed_rows
from etude.tokens.satb import SatbGrid
from tests.paradigms.harness import KILLS, assert_learns_episodes, assert_resumes
from tests.songs import song
from tests.toys import trainer

ALGORITHMS: dict[str, Any] = {
    "prototypical": Prototypical, "matching": Matching, "maml": partial(Maml, steps=2, learn_rates=True), "fomaml": Fomaml,
    "reptile": Reptile, "alignment": partial(Alignment, notes=16),
}  # fmt: skip
NETWORK = partial(Transformer, dim=16, num_layers=1, num_heads=2, causal=False)
CLASSES, PIECES = 9, 4  # three classes of each split


class Families(Folder):
    """Songs in folders that are classes; a class belongs to one split."""

    def files(self) -> list[Any]:
        order = {f"class{i}": ("train", "val", "test")[i // 3] for i in range(CLASSES)}
        return [replace(source, split=order[source.genre]) for source in super().files()]


def write_classes(folder: Path) -> Path:
    """Writes the songs of all classes, unless they are there."""
    for number in range(CLASSES * PIECES):
        path = folder / f"class{number // PIECES}" / f"song{number:02d}.mid"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            song(number, bars=2, voices=1 + number % 2).dump_midi(path)
    return folder


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("home") / "songs")


def music(songs: Path, workers: int = 0, **options: Any) -> EpisodeModule:
    return EpisodeModule(
        **{
            "corpus": Families(str(songs)), "tokenizer": partial(MidiTokTokenizer, scheme="REMI", infill=False),
            "cache_dir": str(songs.parent / "cache"), "max_len": 128, "max_eval_len": 128, "batch_size": 2,
            "batches_per_epoch": 5, "num_workers": workers, "prepare_workers": 1, "seed": 1, "controls": [], "infill": 0.0,
            "targets": ["genre"], "ways": 3, "shots": 1, "queries": 2, "val_episodes": 4, "transpose": [-2, 2], **options,
        }
    )  # fmt: skip


def task(songs: Path, algorithm: str = "prototypical", **data: Any) -> tuple[FewShot, EpisodeModule]:
    torch.manual_seed(0)
    workers = data.pop("num_workers", 0)
    module = music(songs, workers, **data)
    return FewShot(
        model=NETWORK, algorithm=ALGORITHMS[algorithm], optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1,
        tokenizer=module.tokenizer, ways=module.ways,
    ), module  # fmt: skip


# --- episodes ---


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_episodes_are_of_one_split_and_their_halves_are_disjoint(songs: Path, split: str) -> None:
    data = music(songs)
    planner = data.planner(split, seed=0)
    labels = data.labels(split, "genre")
    seen = set()
    for number in range(20):
        batch = data.batch(planner, planner.rows(number))
        piece, way, query = (batch[name].amax(1).tolist() for name in ("piece", "way", "query"))
        assert len(set(piece)) == len(piece) == 9 and sorted(way) == [0] * 3 + [1] * 3 + [2] * 3
        assert sum(query) == 6 and all(len({labels[p] for p, w in zip(piece, way, strict=True) if w == n}) == 1 for n in range(3))
        assert len({(w, labels[p]) for p, w in zip(piece, way, strict=True)}) == 3
        seen |= {labels[p] for p in piece}
        assert (batch["episode"] == torch.where(batch["documents"] >= 0, 0, -1)).all()
    assert seen == {f"class{i}" for i in range(9) if ("train", "val", "test")[i // 3] == split}


def test_equal_pieces_count_once_and_none_of_an_earlier_split(songs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "songs"
    shutil.copytree(songs, copy)
    shutil.copy(songs / "class0" / "song00.mid", copy / "class0" / "again.mid")
    shutil.copy(songs / "class0" / "song00.mid", copy / "class3" / "again.mid")
    data = music(copy)
    assert [len(x) for x in data.members("train", ways=3, shots=1, queries=2)["genre"].values()] == [4, 4, 4]
    assert [len(x) for x in data.members("val", ways=3, shots=1, queries=2)["genre"].values()] == [4, 4, 4]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_sampler_resumes_in_the_middle_of_an_epoch(songs: Path, ranks: int) -> None:
    data = music(songs)

    def sampler() -> EpisodeSampler:
        planner = data._planner("train", data._training)
        return EpisodeSampler(planner, batch_size=2, num_batches=3, rank=ranks - 1, world=ranks)

    def told(batch: Any) -> list[Any]:
        return [(row.plan.tolist(), row.episode, row.way, row.query) for row in batch]

    whole = sampler()
    batches = [told(batch) for _ in range(3) for batch in whole]
    assert len(batches) == 9 and len({str(batch) for batch in batches}) == 9
    half = sampler()
    first = iter(half)
    next(first), next(first)
    rest = sampler()
    rest.load_state_dict(half.state_dict())
    assert [told(batch) for batch in rest] + [told(batch) for batch in rest] == batches[2:6]


def test_validation_episodes_are_the_same_each_time(songs: Path) -> None:
    loader = music(songs).val_dataloader()
    first, second = ([batch["piece"] for batch in loader] for _ in range(2))
    assert len(first) == 2 and all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_rules_choose_the_pieces_of_a_class(songs: Path) -> None:
    data = music(songs, shots=1, queries=1)
    allowed = {row for i, row in enumerate(data.view("train").table["row"].tolist()) if i % PIECES < 2}
    data.admit("half", lambda rows, draw: np.array([float(row in allowed) for row in rows.tolist()]))
    for batch in data.train_dataloader():
        assert set(batch["piece"].amax(1).tolist()) <= allowed


def test_families_stay_whole_and_linked_ones_together() -> None:
    folder = TuneFamilies().files()[0].path.parent
    found = families(folder)
    split: dict[str, set[str]] = {}
    for family, part in found.values():
        split.setdefault(family, set()).add(part)
    assert len(split) == 79 and all(len(parts) == 1 for parts in split.values())
    assert split["Die Koenigskinder"] == {next(name for name, end in ENDS if _place("Die Koenigskinder") < end)}
    assert split["Die Rheinbraut"] == split["Der Maedchenmoerder (Halewijn - Ulinger)"]  # one catalogue number, Q0041
    assert len({region for region, _ in regions(folder).values()}) == 9


# --- the task ---


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_resumes(tmp_path: Path, songs: Path, algorithm: str) -> None:
    assert_resumes(tmp_path, lambda: task(songs, algorithm), kill=KILLS[1], accumulate_grad_batches=1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_learns_its_episodes(tmp_path: Path, songs: Path, algorithm: str) -> None:
    model, data = task(songs, algorithm, transpose=None)
    assert_learns_episodes(tmp_path, model, data)


def test_adaptation_lowers_the_loss_of_the_support_and_leaves_the_weights(songs: Path) -> None:
    model, data = task(songs, "maml")
    planner = data.planner("train", seed=0)
    ((support, query),) = episodes(data.batch(planner, planner.rows(0)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():  # as trainer.validate
        weights = model.adapted(support, steps=8)
        adapted = outputs_at(model, support, "way_logits", parameters=weights)
    true = model.documents(support, "way")
    plain = torch.nn.functional.cross_entropy(model.way_logits(support), true).detach()
    assert torch.nn.functional.cross_entropy(adapted, true) < plain
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(query) == set(support) and "query" not in query


def test_mamls_gradient_of_the_task_is_that_of_differences(songs: Path) -> None:
    model, data = task(songs, "maml")
    model.double()
    planner = data.planner("train", seed=0)
    batch = data.batch(planner, planner.rows(0))
    found = model.gradient_of(batch)
    name = "head.weight"
    weight = model.head.weight  # type: ignore[union-attr]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = {name: (weight + sign * 1e-5 * direction).requires_grad_()}
        ends.append(model.losses_at(batch, parameters=moved)["query"].item())
    assert float((found[name] * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3)
    assert "algorithm.log_rates" in found


def test_a_long_piece_is_compared_by_its_beginning_in_whatever_order_its_parts_come(songs: Path) -> None:
    model, data = task(songs, "alignment")
    body = torch.from_numpy(np.asarray(data.tokenizer.encode(song(1, bars=2, voices=1))).astype(np.int64))
    made = packed_rows(data.tokenizer, [body, body], rows=1, length=2 * len(body) + 2)
    made["tokens"][0, 0] = CONT  # the first document is now a later part
    made["piece"][:] = 5
    assert model.documents(made, "tokens").tolist() == [CONT, BOS]
    found = of_beginnings(model, lambda batch: model.documents(batch, "tokens"), [made])
    assert {piece: int(row) for piece, row in found.items()} == {5: BOS}


def test_evaluation_shows_floors_beside_the_algorithm(tmp_path: Path, songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algorithm in ("prototypical", "alignment", "fomaml"):
        model, data = task(songs, algorithm)
        options: dict[str, Any] = {"ways": 3, "shots": [1, 3], "episodes": 8, "tuned_episodes": 2}
        adapted = {"adapted_episodes": 2} if algorithm == "fomaml" else {}
        rows = score_few_shot(task=model, datamodule=data, folder=tmp_path, **options, **adapted)
        own = [algorithm] if algorithm == "fomaml" else [f"{algorithm}, untrained", algorithm]
        methods = [
            "chance", "n-grams, nearest centroid", "random encoder, nearest centroid", "this encoder, nearest centroid",
            *own, "fine-tuned from scratch", "fine-tuned from this encoder",
        ]  # fmt: skip
        assert [row["method"] for row in rows] == 2 * methods and all(0 <= row["accuracy"] <= 1 for row in rows)
    assert (tmp_path / "few_shot.csv").is_file() and "3 ways, 3 shots" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the test split has 3 classes of genre .* and an episode takes 5"):
        score_few_shot(task=model, datamodule=data, folder=tmp_path, episodes=2)
    model, data = task(songs, "alignment")
    with pytest.raises(ValueError, match=r"task\.adapted_episodes=5 does nothing: alignment adapts no network .* leave it out"):
        score_few_shot(task=model, datamodule=data, folder=tmp_path, ways=3, adapted_episodes=5)
    with pytest.raises(ValueError, match=r"task\.split=train is not held out; choose val or test"):
        score_few_shot(task=model, datamodule=data, folder=tmp_path, split="train")


def test_it_starts_from_the_encoder_of_another_run(tmp_path: Path, songs: Path) -> None:
    model, data = task(songs, "maml")
    other = Representation(
        model=NETWORK, objective=Masked, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-3)
    )
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(other, data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    found = model.weights_from(saved, tmp_path / "end.ckpt")
    assert found.keys() == model.state_dict().keys()
    for name, value in other.encoder.state_dict().items():
        torch.testing.assert_close(found[f"encoder.{name}"], value)
    satb = FewShot(
        model=NETWORK, algorithm=Prototypical, optimizer=partial(torch.optim.AdamW), tokenizer=SatbGrid(genres=[]), ways=3
    )
    with pytest.raises(ValueError, match="its tokens"):
        satb.weights_from(saved, tmp_path / "end.ckpt")


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 4}, r"the train split has 3 classes of genre .* and an episode takes 4"),
        ({"shots": 3, "queries": 2}, r"has 0 classes of genre with 5 different pieces \(3 with fewer\)"),
        ({"ways": 0}, "data.ways=0 must be at least 1"),
        ({"queries": 0}, "data.queries=0 must be at least 1"),
        ({"targets": []}, "data.targets names no column"),
        ({"targets": ["family"]}, "the data has no column 'family'"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(songs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        music(songs, **options).prepare()


def test_classes_are_told_apart_from_others(songs: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.ways=1: task=few_shot tells classes apart, of which .* at least 2"):
        task(songs, ways=1)


def test_classes_with_too_few_pieces_are_told(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "songs"
    shutil.copytree(songs, copy)
    (copy / "class1" / "song04.mid").unlink()
    music(copy, ways=2, queries=3).prepare()
    assert "1 of 3 classes of genre in the train split have fewer than 4 pieces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prototypical(dim=4, distance="l1"), "algorithm.distance=l1"),
        (lambda: Prototypical(dim=4, temperature=0.0), "algorithm.temperature=0.0"),
        (lambda: Matching(dim=4, steps=0), "algorithm.steps=0"),
        (lambda: Maml(dim=4, rate=0.0), "algorithm.rate=0.0"),
        (lambda: Reptile(dim=4, steps=0), "algorithm.steps=0"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
