"""Best of n: the candidate that is kept is the one that the metric ranks first, and what was asked is what is done."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from symusic import Note, Score, Track

from etude.generation.ranking import BEST, UNITS, Ranking, distance_from, ranking
from etude.generation.samples import check_requests, write_samples
from etude.metrics.scores.tables import PIECE_METRICS, piece_metrics
from etude.models.symbolic.transformer import Transformer
from etude.report.media import read_table
from etude.tasks.language_model import LanguageModel
from etude.tokens.miditok import MidiTokTokenizer


def melody(*pitches: int) -> Score:
    score = Score(480)
    score.tracks.append(Track(notes=[Note(480 * place, 480, pitch, 80) for place, pitch in enumerate(pitches)]))
    return score


SCALE, CHROMATIC, WHOLE = melody(60, 62, 64, 65, 67, 69, 71, 72), melody(*range(60, 68)), melody(60, 62, 64, 66, 68, 70)


class Draws:
    """A task that draws the given scores, one after another."""

    def __init__(self, *scores: Score) -> None:
        self.scores = list(scores)

    def check_request(self, labels: Any, **_: Any) -> list[str]:
        return []

    def sample(self, *, num_samples: int, **_: Any) -> list[Score]:
        return [self.scores.pop(0) for _ in range(num_samples)]


@pytest.fixture(scope="module")
def task() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, hidden_dim=16),
        tokenizer=MidiTokTokenizer(genres=["folk"]), optimizer=torch.optim.AdamW,
    )  # fmt: skip


def test_every_metric_of_the_house_can_rank_and_those_with_a_better_end_are_among_them() -> None:
    assert set(PIECE_METRICS) < set(UNITS) and set(BEST) <= set(UNITS)
    for name in UNITS:
        if name not in ("distance", "likelihood"):
            assert ranking({"best_of": 2, "rank_by": name.replace(" ", "_"), "rank_order": "lowest"}, Draws(), labels={})


def test_the_highest_or_lowest_value_is_kept_and_undefined_ones_come_last() -> None:
    values = {"a": [0.2, math.nan, 0.9, 0.9], "b": [math.nan, math.nan]}
    scores = [melody(60 + n) for n in range(4)]
    best = Ranking("scale consistency", "highest", lambda _: values["a"]).best(scores)
    assert (best.place, best.value) == (3, 0.9) and best.score is scores[2]
    assert best.others[0] == 0.2 and math.isnan(best.others[1]) and best.others[2] == 0.9
    assert Ranking("dissonance", "lowest", lambda _: values["a"]).best(scores).place == 1
    assert Ranking("dissonance", "lowest", lambda _: values["b"]).best(scores[:2]).place == 1


def test_each_sample_is_the_best_of_its_own_candidates_and_the_report_tells(tmp_path: Path, capsys: Any) -> None:
    task: Any = Draws(CHROMATIC, SCALE, SCALE, WHOLE)
    files = write_samples(task=task, folder=tmp_path, num_samples=2, best_of=2, rank_by="scale_consistency", audio=False)
    assert [path.name for path in files] == ["000.mid", "001.mid"]
    assert [len(Score(path).tracks[0].notes) for path in files] == [8, 8]
    rows = read_table(tmp_path / "samples")
    assert [row.values["candidate kept"] for row in rows] == [2, 1]
    assert [float(str(row.values["kept scale consistency"])) for row in rows] == [1.0, 1.0]
    other = piece_metrics(CHROMATIC)["scale consistency"]
    assert other < 1 and float(str(rows[0].values["of the others"])) == pytest.approx(other, rel=1e-3)
    told, page = capsys.readouterr().err, (tmp_path / "report.html").read_text()
    assert f"000: candidate 2 kept, scale consistency 1; the others {other:.4g}" in told
    assert "Best of 2 by scale consistency, highest first" in page
    assert "of 2 candidates the one with the highest scale consistency" in page


def test_the_candidates_are_the_samples_that_the_seed_gives_without_ranking(task: LanguageModel, tmp_path: Path) -> None:
    options: Any = {"task": task, "num_bars": 2, "max_new_tokens": 60, "seed": 3, "audio": False}
    drawn = [Score(path) for path in write_samples(folder=tmp_path / "all", num_samples=6, **options)]
    files = write_samples(
        folder=tmp_path / "best", num_samples=2, best_of=3, rank_by="polyphony", rank_order="highest", **options
    )
    for number, path in enumerate(files):
        group = drawn[3 * number : 3 * number + 3]
        place = int(read_table(tmp_path / "best" / "samples")[number].values["candidate kept"])
        assert Score(path).dumps_midi() == group[place - 1].dumps_midi()
        values = [piece_metrics(score)["polyphony"] for score in group]
        assert values[place - 1] == max(values)


def test_likelihood_per_token_is_that_of_the_drawn_tokens(task: LanguageModel) -> None:
    ids = task.tokenizer.encode(SCALE)
    opening = torch.tensor([[1, *task.tokenizer.controls({"key": "C major"}), *ids.tolist()]])
    features = {name: torch.zeros(opening.shape, dtype=torch.int64) for name in task.tokenizer.feature_sizes}
    for name, values in task.tokenizer.features(ids).items():
        features[name][0, 2:] = torch.from_numpy(values)
    logits = task.model(opening, features=features)[0, 1:-1].log_softmax(-1)
    expected = -logits.gather(1, opening[0, 2:, None]).mean().item()
    (nats, empty) = task.nats_per_token([SCALE, Score(480)], labels={"key": "C major"})
    assert nats == pytest.approx(expected, rel=1e-5) and math.isnan(empty)
    assert task.nats_per_token([SCALE])[0] != pytest.approx(nats, rel=1e-5)
    chosen = ranking({"best_of": 2, "rank_by": "likelihood"}, task, labels={"key": "C major"})
    assert chosen is not None and chosen.best([SCALE, CHROMATIC]).values[0] == pytest.approx(-nats)


def test_distance_is_small_for_what_is_like_the_real_music(tmp_path: Path) -> None:
    real = [melody(*(pitch + shift for pitch in (60, 62, 64, 65, 67, 65, 64, 62))) for shift in range(6)]
    near, far, empty = distance_from(real)([melody(62, 64, 66, 67, 69, 67, 66, 64), melody(30, 90, 31, 95), Score(480)])
    assert near < 0.5 < far <= 8 and math.isnan(empty)
    for number, score in enumerate(real):
        score.dump_midi(tmp_path / f"{number}.mid")
    (tmp_path / "broken.mid").write_bytes(b"MThd, but no more")
    chosen = ranking({"best_of": 2, "rank_by": "distance", "real": str(tmp_path)}, Draws(), labels={})
    assert chosen is not None and chosen.best([melody(30, 90, 31, 95), real[0]]).place == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_by": "likelihood"}, r"rank_by=likelihood chooses among candidates; add best_of=8"),
        ({"best_of": 8}, r"best_of=8 needs rank_by=METRIC; choose one of likelihood.*scale_consistency"),
        ({"best_of": 0, "rank_by": "likelihood"}, r"best_of is 0, must be at least 1"),
        (
            {"best_of": 2, "rank_by": "in_scale"},
            r"rank_by=in_scale is no metric.*one of likelihood, distance, pitches_used",
        ),
        ({"best_of": 2, "rank_by": "scale_consistancy"}, r"did you mean scale_consistency\?"),
        ({"best_of": 2, "rank_by": "polyphony"}, r"neither end.*add rank_order=highest or rank_order=lowest"),
        ({"best_of": 2, "rank_by": "dissonance", "rank_order": "least"}, r"rank_order=least.*highest or lowest"),
        ({"best_of": 2, "rank_by": "distance"}, r"rank_by=distance needs music to compare with: real=FOLDER"),
        ({"best_of": 2, "rank_by": "distance", "real": "nowhere"}, r"real=nowhere: there is no such folder"),
        ({"best_of": 2, "rank_by": "dissonance", "real": "."}, r"real=\. is only for rank_by=distance"),
        ({"best_of": 2, "rank_by": "likelihood"}, r"rank_by=likelihood: Draws has no likelihood"),
    ],
)
def test_what_can_not_be_ranked_is_refused_before_drawing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_requests(options, Draws())
    task: Any = Draws()
    with pytest.raises(ValueError, match=message):
        write_samples(task=task, folder=tmp_path, audio=False, **options)
    assert not (tmp_path / "samples").exists()


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its 0 score files can be read"):
        ranking({"best_of": 2, "rank_by": "distance", "real": str(tmp_path)}, Draws(), labels={})
