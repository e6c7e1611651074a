"""Laws of curricula: pacing, ranks, who is admitted when, and that feedback waits for what is drawn already."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from etude.optim.pacing import PACINGS, competence, progress_at
from etude.techniques.data.curriculum import AXES, Curriculum

NAMES = ("rhythmic_syncopation", "harmonic_key_distance", "melodic_range", "structural_length")


class Data:
    """A table of 40 pieces in two genres; the second is harder on every axis."""

    lookahead = 16

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.genre = np.array(["folk"] * 20 + ["jazz"] * 20, object)
        self.values = {f"complexity_{name}": random.random(40) + (self.genre == "jazz") for name in NAMES}

    def pieces(self) -> dict[str, np.ndarray]:
        return {"genre": self.genre, "bars": np.arange(40), **self.values}

    def admit(self, name: str, rule: Any) -> None:
        self.rule = rule


def ready(max_steps: int = 100, **options: Any) -> tuple[Curriculum, Data]:
    data, technique = Data(), Curriculum(**options)
    run: Any = SimpleNamespace(datamodule=data, max_steps=max_steps, accumulate_grad_batches=1, sanity_checking=False)
    task: Any = SimpleNamespace(logits=lambda batch: batch, tokenizer=None, traces_tokens=True)
    technique.setup(run, task, "fit")
    return technique, data


def admitted(data: Data, draw: int) -> np.ndarray:
    return data.rule(np.arange(40), draw).astype(bool)


@pytest.mark.parametrize("pacing", PACINGS)
def test_competence_rises_from_start_to_one_and_has_an_inverse(pacing: str) -> None:
    values = [competence(t, pacing=pacing, start=0.1) for t in np.linspace(-0.5, 1.5, 81)]
    assert values[0] == pytest.approx(0.1) and values[-1] == pytest.approx(1.0)
    assert all(b >= a for a, b in pairwise(values))
    for t in (0.1, 0.5, 0.9):
        assert progress_at(competence(t, pacing=pacing, start=0.1), pacing=pacing, start=0.1) == pytest.approx(t)


def test_root_pacing_is_platanios() -> None:
    assert competence(0.5, pacing="root", start=0.1, power=2) == pytest.approx(np.sqrt(0.5 * (1 - 0.01) + 0.01))
    assert competence(0.5, pacing="root", start=0.1, power=1) == competence(0.5, pacing="linear", start=0.1)


def test_the_share_admitted_is_the_competence_and_the_easiest_come_first() -> None:
    _, data = ready(difficulty="bars", pacing="linear", start=0.1, end=0.5, diversity=0.0)
    for draw in (0, 10, 25, 40, 60):
        share = competence(draw / 50, pacing="linear", start=0.1)
        found = admitted(data, draw)
        assert found.sum() == int(share * 40 + 1e-9) and found[: found.sum()].all()
    assert admitted(data, 50).all()


def test_reverse_begins_with_the_hardest() -> None:
    _, data = ready(difficulty="bars", reverse=True, start=0.25, diversity=0.0)
    assert admitted(data, 0).tolist() == [False] * 30 + [True] * 10


def test_no_level_is_one_genre_and_genres_may_pace_themselves() -> None:
    _, alone = ready(start=0.2, diversity=0.0)
    assert not admitted(alone, 0)[20:].any()
    _, mixed = ready(start=0.2, diversity=0.25)
    assert admitted(mixed, 0)[20:].sum() == 5
    _, paced = ready(start=0.2, diversity=0.0, by_genre=True)
    assert admitted(paced, 0)[:20].sum() == pytest.approx(4, abs=2) and admitted(paced, 0)[20:].sum() == pytest.approx(4, abs=2)


def test_musical_pacing_asks_for_all_axes_and_a_fast_one_opens_sooner() -> None:
    technique, data = ready(pacing="musical", start=0.05, end=1.0, diversity=0.0)
    ranks = technique._ranks()
    assert set(ranks) == set(AXES)
    draw = 40
    bound = competence(draw / 100, start=0.05)
    easy = np.all([ranks[axis] <= bound + 1e-9 for axis in AXES], axis=0)
    assert set(np.flatnonzero(easy)) <= set(np.flatnonzero(admitted(data, draw)))
    assert admitted(data, draw).sum() <= easy.sum() + 2  # what is open from the beginning
    _, fast = ready(pacing="musical", start=0.05, end=1.0, diversity=0.0, axes=dict.fromkeys(AXES, 2.0))
    assert (admitted(fast, draw // 2) == admitted(data, draw)).all()


def test_adaptive_pace_quickens_with_progress_falls_back_on_a_stall_and_waits_for_what_is_drawn() -> None:
    technique, _ = ready(difficulty="bars", adaptive=True, monitor="val/nll", end=1.0)
    from etude.core.task import Task

    task: Any = Task(optimizer=torch.optim.SGD)  # type: ignore[arg-type]

    def validate(batch: int, value: float) -> None:
        task.batches_trained = batch
        run: Any = SimpleNamespace(sanity_checking=False, callback_metrics={"val/nll": torch.tensor(value)})
        technique.on_validation_end(run, task)

    before = [technique.progress(draw) for draw in range(36)]
    validate(20, 1.0)
    assert [technique.progress(draw) for draw in range(20, 36)] == before[20:]  # drawn ahead
    assert technique.progress(46) - technique.progress(36) == pytest.approx(1.25 * 0.1)
    validate(30, 1.1)
    assert technique.progress(46) == pytest.approx(technique.progress(45) + 0.0125 - 0.1)
    copy = Curriculum(difficulty="bars", adaptive=True, monitor="val/nll", end=1.0)
    copy.load_state_dict(technique.state_dict())
    copy._span = technique._span
    assert [copy.progress(draw) for draw in range(30, 90)] == [technique.progress(draw) for draw in range(30, 90)]


def test_own_loss_ranks_what_was_seen(tmp_path: Any) -> None:
    technique, data = ready(difficulty="loss", start=0.1, end=1.0, diversity=0.0)
    from etude.core.task import Task

    task: Any = Task(optimizer=torch.optim.SGD)  # type: ignore[arg-type]
    losses = torch.linspace(1, 2, 40).flip(0)  # the last piece is the easiest to the model
    batch = {"piece": torch.arange(40)[None], "targets": torch.zeros(1, 40, dtype=torch.long)}
    task.trace = {"token_nll": losses[None]}
    technique.extra_losses(task, batch, {})
    technique.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics={}, world_size=1), task)  # type: ignore[arg-type]
    first = admitted(data, 16)
    assert 10 < first.sum() < 20 and first[-first.sum() :].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end": 0.0}, r"curriculum.end is 0.0, must be in \(0, 1\]"),
        ({"start": 1.5}, r"curriculum.start is 1.5, must be in \(0, 1\]"),
        ({"pacing": "fast"}, "linear, root, exponential, cosine, musical"),
        ({"axes": {"tonal": 1.0}}, "rhythmic, harmonic, melodic, structural"),
        ({"diversity": 2.0}, r"must be in \[0, 1\]"),
        ({"pacing": "musical", "difficulty": "loss"}, "needs difficulty=music"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curriculum(**options)


def test_an_unknown_column_is_told_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"difficulty is 'hardness'; choose music, loss or a numeric column.*bars"):
        ready(difficulty="hardness")
