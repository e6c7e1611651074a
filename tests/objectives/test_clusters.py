"""Several initial weights: one is plain MAML, equal episodes share one, different ones part; each moves by its share."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.objectives.inner_loop import CRITERIA, InnerLoop
from etude.objectives.maml import Fomaml, Maml
from etude.objectives.reptile import Reptile
from etude.tasks.episode_loops import episodes
from tests.paradigms.harness import KILLS, assert_resumes, fit
from tests.tasks.test_few_shot import ALGORITHMS, music, task, write_classes
from tests.toys import same, weights

CENTRES = torch.tensor([[-2.0, 1.0], [2.0, -1.0]]).double()


def parts(centre: Tensor) -> tuple[Any, Any]:
    """The slope and the loss of |t - centre|^2 / 2, an episode whose best weights are the centre."""

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * (weights["t"] - centre).square().sum()

    def slope(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"t": weights["t"] - centre}

    return slope, loss


def loop(kind: type[InnerLoop] = Fomaml, **options: Any) -> tuple[InnerLoop, dict[str, Tensor]]:
    torch.manual_seed(0)
    made = kind(dim=1, rate=0.1, steps=2, **options)
    first = {"t": torch.nn.Parameter(torch.tensor([0.1, 0.0]).double())}
    made.attach(first)
    return made, first


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_episode_starts_from_the_weights_that_suit_it(criterion: str) -> None:
    made, first = loop(clusters=2, cluster_by=criterion)
    with torch.no_grad():
        first["t"].copy_(CENTRES[0] + 0.1)
        made.starts(first)[1]["t"].copy_(CENTRES[1] - 0.1)
    for number, centre in enumerate(CENTRES):
        for _ in range(3):  # equal episodes share one
            shares = made.shares(first, *parts(centre), steps=2)
            assert int(shares.argmax()) == number and float(shares.sum()) == pytest.approx(1)
            assert made.start(first, *parts(centre), steps=2) is not first or number == 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_weights_share_alike_and_a_low_temperature_takes_one(criterion: str) -> None:
    made, first = loop(clusters=3, cluster_by=criterion)
    for start in made.starts(first)[1:]:
        with torch.no_grad():
            start["t"].copy_(first["t"])
    torch.testing.assert_close(made.shares(first, *parts(CENTRES[0]), steps=2), torch.full((3,), 1 / 3).double())
    made, first = loop(clusters=3, cluster_by=criterion, cluster_temperature=1e-6)
    assert made.shares(first, *parts(CENTRES[0]), steps=2).max() == 1


@pytest.mark.parametrize("kind", [Fomaml, Reptile])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_two_kinds_of_episodes_part_where_one_initialisation_stays_between(kind: type[InnerLoop], criterion: str) -> None:
    ends = {}
    for clusters in (1, 2):
        several: dict[str, Any] = {"cluster_by": criterion, "cluster_spread": 1.0} if clusters > 1 else {}
        made, first = loop(kind, clusters=clusters, **several)
        optimizer = torch.optim.SGD([*first.values(), *made.parameters()], lr=0.1)
        for step in range(400):
            slope, loss = parts(CENTRES[step % 2])
            optimizer.zero_grad()
            made.episode_loss(first, slope, loss, loss).backward()
            optimizer.step()
        ends[clusters] = torch.stack([start["t"].detach() for start in made.starts(first)])
    torch.testing.assert_close(ends[1][0], CENTRES.mean(0), rtol=0, atol=0.3)
    distances = torch.cdist(ends[2], CENTRES)
    assert sorted(distances.argmin(1).tolist()) == [0, 1] and distances.min(1).values.max() < 0.05


def test_each_gets_its_share_of_the_gradient() -> None:
    made, first = loop(Maml, clusters=3, cluster_temperature=0.5)
    slope, loss = parts(CENTRES[0])
    shares = made.shares(first, slope, loss, steps=2)
    made.episode_loss(first, slope, loss, loss).backward()
    for share, start in zip(shares, made.starts(first), strict=True):
        found, start["t"].grad = start["t"].grad, None
        made.losses(start, slope, loss).backward()
        torch.testing.assert_close(found, share * start["t"].grad)


def test_the_others_go_along_with_weights_from_elsewhere() -> None:
    made, first = loop(clusters=2)
    own = {"t": first["t"].detach(), **{f"algorithm.{n}": p.detach() for n, p in made.named_parameters()}}
    found = made.carried(own, {"t": torch.tensor([5.0, 7.0]).double()}, "algorithm.")
    torch.testing.assert_close(found["algorithm.others.0.0"] - found["t"], own["algorithm.others.0.0"] - own["t"])
    assert found["t"].tolist() == [5.0, 7.0]


def test_weights_that_are_missing_or_new_are_told() -> None:
    made, first = loop(clusters=2)
    with pytest.raises(ValueError, match=r"algorithm\.clusters=2 has initial values of all weights of the task, but adapter was"):
        made.starts({**first, "adapter": torch.zeros(1)})
    with pytest.raises(ValueError, match="but t was frozen"):
        made.starts({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, "algorithm.clusters=0 must be at least 1"),
        ({"clusters": 2, "cluster_by": "size"}, "algorithm.cluster_by=size one of loss, gradient"),
        ({"clusters": 2, "cluster_spread": 0.0}, "algorithm.cluster_spread=0.0 above 0"),
        ({"clusters": 2, "cluster_temperature": 0.0}, "algorithm.cluster_temperature=0.0 and"),
        ({"cluster_by": "loss"}, "do nothing with one cluster"),
    ],
)
@pytest.mark.parametrize("kind", [Maml, Reptile])
def test_wrong_options_are_refused(kind: type[InnerLoop], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(dim=1, **options)


# --- in a task ---


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("clusters") / "songs")


def clustered(songs: Path, monkeypatch: pytest.MonkeyPatch, kind: type[InnerLoop], **options: Any) -> Any:
    monkeypatch.setitem(ALGORITHMS, "clustered", partial(kind, **{"steps": 2, "clusters": 2, **options}))
    return lambda: task(songs, "clustered")


def test_one_cluster_is_plain_maml_bit_for_bit(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        fit(tmp_path / str(clusters), clustered(songs, monkeypatch, Maml, clusters=clusters), steps=4) for clusters in (None, 1)
    ]
    assert same(*(weights(each) for each in found)) and len(weights(found[0])) == len(weights(found[1]))


@pytest.mark.parametrize(("kind", "criterion"), [(Maml, "loss"), (Reptile, "gradient")])
def test_it_resumes(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch, kind: type[InnerLoop], criterion: str) -> None:
    assert_resumes(tmp_path, clustered(songs, monkeypatch, kind, cluster_by=criterion), kill=KILLS[1])


def test_the_shares_of_the_clusters_are_measured(songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = clustered(songs, monkeypatch, Fomaml)()
    assert [measure.name for measure in model.measures()][-2:] == ["cluster_0", "cluster_1"]
    found = [model.measure(batch) for batch in data.val_dataloader()]
    for each in found:
        shares = [each[f"cluster_{number}"] for number in range(2)]
        assert sum(float(share.mean) for share in shares) == pytest.approx(1) and int(shares[0].count) == 2


def parities(songs: Path) -> dict[str, str]:
    """Options for labels of pieces that cut across the classes: whether the number of a song is odd."""
    path = songs.parent / "labels.csv"
    files = sorted(file.relative_to(songs).as_posix() for file in songs.rglob("*.mid"))
    path.write_text("file,parity\n" + "".join(f"{name},{'odd' if int(name[-5]) % 2 else 'even'}\n" for name in files))
    return {"labels_file": str(path)}


def test_episodes_of_several_columns_are_trained_on_and_one_is_asked_about(songs: Path) -> None:
    data = music(songs, ways=2, queries=1, batches_per_epoch=8, also_train_on=["parity"], **parities(songs))
    assert [set(data.members(split, ways=2, shots=1, queries=1)) for split in ("train", "val", "test")] == [
        {"genre", "parity"}, {"genre"}, {"genre"},
    ]  # fmt: skip
    names = {column: data.labels("train", column) for column in ("genre", "parity")}
    seen = {column: 0 for column in names}
    for batch in data.train_dataloader():
        for support, query in episodes(batch):
            rows = torch.cat([support["piece"].amax(1), query["piece"].amax(1)]).tolist()
            ways = torch.cat([support["way"].amax(1), query["way"].amax(1)]).tolist()
            for column, values in names.items():
                seen[column] += len({(values[row], way) for row, way in zip(rows, ways, strict=True)}) == 2
    assert min(seen.values()) >= 3  # each column makes about half of the 16 episodes


def test_columns_that_cannot_make_episodes_are_refused(songs: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.also_train_on names genre, which data\.targets has already"):
        music(songs, also_train_on=["genre"])
    with pytest.raises(ValueError, match=r"data\.also_train_on names key, which data\.transpose=.* changes from pass to pass"):
        music(songs, also_train_on=["key"])
    with pytest.raises(ValueError, match="the data has no column 'colour'"):
        music(songs, also_train_on=["colour"]).prepare()
