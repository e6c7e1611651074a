"""Representations: views are transposed scores, resuming is exact, weights go to classifiers, features are of pieces."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Note, Score, TimeSignature, Track

from etude.core.stopping import Stopped
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.evaluation.fine_tuning import FineTuning, fine_tuned
from etude.evaluation.representation import chosen, piece_vectors, probe, score_representation, typical, untrained
from etude.models.symbolic.transformer import Transformer
from etude.objectives.mae import Mae
from etude.objectives.masked import Masked
from etude.objectives.views import Byol, Moco, SimClr, Swav
from etude.tasks.classifier import Classifier
from etude.tasks.language_model import LanguageModel
from etude.tasks.pooling import each_document
from etude.tasks.representation import Representation
from etude.tasks.score_views import ScoreViews, shortened
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import BAR, TIME_SIG
from etude.tokens.satb import SatbGrid
from tests.paradigms.harness import KILLS, assert_resumes
from tests.songs import write_songs
from tests.toys import same, trainer, weights

OBJECTIVES = {
    "simclr": SimClr,
    "moco": partial(Moco, queue_size=24),
    "byol": Byol,
    "swav": partial(Swav, num_prototypes=8, queue_size=24),
    "masked": Masked,
    "mae": Mae,
}
NETWORK = partial(Transformer, dim=16, num_layers=2, num_heads=2, causal=False, dropout=0.1)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("home") / "songs", count=16)


def music(songs: Path) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=partial(MidiTokTokenizer, scheme="REMI", infill=False, parts=4),
        cache_dir=str(songs.parent / "cache"), max_len=512, max_eval_len=512, batch_size=2, batches_per_epoch=5,
        prepare_workers=1, seed=1, controls=[], infill=0.0, targets=["genre"],
    )  # fmt: skip


def task(songs: Path, objective: str = "simclr", **options: Any) -> tuple[Representation, MusicDataModule]:
    torch.manual_seed(0)
    data = music(songs)
    own = {"model": NETWORK, "objective": OBJECTIVES[objective], "optimizer": partial(torch.optim.AdamW, lr=1e-3), "seed": 1}
    return Representation(tokenizer=data.tokenizer, **{**own, **options}), data


def notes(data: MusicDataModule, tokens: torch.Tensor) -> list[list[tuple[float, float, int]]]:
    """Onset and duration in quarters, and pitch, of the notes of each track."""
    score = data.tokenizer.decode(tokens.numpy())
    unit = score.ticks_per_quarter
    return [[(note.time / unit, note.duration / unit, note.pitch) for note in track.notes] for track in score.tracks]


def body_of(data: MusicDataModule) -> torch.Tensor:
    return torch.from_numpy(np.array(data.view("train").body(0)).astype(np.int64))


def test_a_transposed_view_is_the_transposed_score(songs: Path) -> None:
    data = music(songs)
    views, body = ScoreViews(data.tokenizer, semitones=3, tempi=0), body_of(data)
    plain = notes(data, body)
    for row, shift in enumerate(range(-3, 4)):
        moved = notes(data, views.pitches[row, body])
        assert moved == [[(time, long, pitch + shift) for time, long, pitch in track] for track in plain] and plain[0]


def test_doubled_note_values_are_the_same_music_in_another_notation(tmp_path: Path) -> None:
    """A tune in 2/4 with sixteenths becomes one in 4/4 with eighths, and back."""
    song = Score(480)
    song.time_signatures.append(TimeSignature(0, 2, 4))
    song.tracks.append(Track(program=0))
    song.tracks[0].notes.extend([Note(120 * i, 120, 60 + i % 7, 80) for i in range(32)])
    for name in ("folk/a.mid", "folk/b.mid"):
        (tmp_path / "songs" / "folk").mkdir(parents=True, exist_ok=True)
        song.dump_midi(tmp_path / "songs" / name)
        song.tracks[0].notes[3].pitch += 1
    data = music(tmp_path / "songs")
    views, body = ScoreViews(data.tokenizer, semitones=0, tempi=0, note_values=True), body_of(data)
    halved, same, doubled = (views.note_values[row, body] for row in range(3))
    assert torch.equal(same, body) and (doubled != -1).all() and (halved == -1).any()  # no token for half of a sixteenth
    twice = [[(2 * time, 2 * long, pitch) for time, long, pitch in track] for track in notes(data, body)]
    assert notes(data, doubled) == twice
    kinds = data.tokenizer.table.kind[doubled.numpy()]
    assert set(data.tokenizer.table.number[doubled.numpy()][kinds == TIME_SIG].tolist()) == {4}
    assert torch.equal(views.note_values[0, doubled], body)


def test_a_view_moves_each_document_by_one_interval_or_not_at_all(songs: Path) -> None:
    data = music(songs)
    batch = next(iter(data.val_dataloader()))
    torch.manual_seed(3)
    moved = ScoreViews(data.tokenizer, semitones=6, tempi=0).changed(batch["tokens"], batch)
    number = torch.from_numpy(data.tokenizer.table.number)
    differs = moved != batch["tokens"]
    documents = each_document(batch, "piece")
    intervals = [
        set((number[moved] - number[batch["tokens"]])[differs & (batch["piece"] == piece)].tolist()) for piece in documents
    ]
    assert all(len(found) <= 1 for found in intervals) and any(intervals)


def test_a_view_shows_whole_bars_of_each_document_in_order(songs: Path) -> None:
    data = music(songs)
    batch = next(iter(data.val_dataloader()))
    torch.manual_seed(0)
    view = ScoreViews(data.tokenizer, semitones=0, tempi=0).view(batch, least=0.5)
    assert torch.equal(each_document(view, "piece"), each_document(batch, "piece"))
    assert view["tokens"].shape[1] < batch["tokens"].shape[1]
    bar = int(data.tokenizer.table.of_kind[BAR][0])
    shares = []
    for row in range(len(batch["tokens"])):
        for document in batch["documents"][row].unique():
            there, shown = batch["documents"][row] == document, view["documents"][row] == document
            if document < 0:
                continue
            whole, part = batch["tokens"][row][there], view["tokens"][row][shown]
            begin = int((batch["positions"][row][there] == view["positions"][row][shown][0]).nonzero()[0])
            after = begin + len(part)
            assert torch.equal(part, whole[begin:after])  # one stretch, in the same order
            assert begin == 0 or part[0] == bar
            assert after == len(whole) or whole[after] == bar
            shares.append(int((part == bar).sum()) / int((whole == bar).sum()))
    assert 0.3 <= min(shares) < 1  # of few bars, rounded down
    everything = ScoreViews(data.tokenizer, semitones=0, tempi=0).view(batch, least=1.0)
    assert torch.equal(everything["tokens"][everything["documents"] >= 0], batch["tokens"][batch["documents"] >= 0])


def test_a_view_leaves_whole_voices_out_and_keeps_one(songs: Path) -> None:
    data = music(songs)
    views, body = ScoreViews(data.tokenizer, semitones=0, tempi=0, voices=0.5), body_of(data)
    batch = {name: torch.zeros(1, len(body), dtype=torch.int64) for name in ("documents", "positions", "piece")}
    batch["tokens"] = body[None]
    voices, seen = notes(data, body), set()
    assert len(voices) == 4
    for seed in range(20):
        torch.manual_seed(seed)
        view = views.view(batch, least=1.0)
        heard = notes(data, view["tokens"][view["documents"] >= 0])
        assert heard and all(track in voices for track in heard)
        seen.add(len(heard))
    assert seen >= {1, 2, 3}


def test_rows_are_shortened_to_what_is_kept() -> None:
    batch = {"tokens": torch.arange(20).view(1, 20), "documents": torch.zeros(1, 20), "positions": torch.arange(20).view(1, 20)}
    found = shortened(batch, torch.arange(20).view(1, 20) % 4 == 1)
    assert found["tokens"].tolist() == [[1, 5, 9, 13, 17, 0, 0, 0]] and found["documents"].tolist() == [[0] * 5 + [-1] * 3]


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "mae"])
def test_it_resumes(tmp_path: Path, songs: Path, objective: str) -> None:
    assert_resumes(tmp_path, lambda: task(songs, objective), kill=KILLS[1], accumulate_grad_batches=1)


def test_slow_copies_and_queues_follow_once_a_step(tmp_path: Path, songs: Path) -> None:
    model, data = task(songs, "moco")
    calls, keys = list[int](), list[torch.Tensor]()
    after: Any = model.objective.after_step

    def counted(left: dict[str, list[torch.Tensor]]) -> None:
        calls.append(len(left["keys"]))
        keys.extend(left["keys"])
        after(left)

    object.__setattr__(model.objective, "after_step", counted)
    trainer(tmp_path, max_steps=2, accumulate_grad_batches=2, val_check_interval=2).fit(model, data)
    assert calls == [2, 2]  # once for both batches of a step; validation, which computes losses too, adds nothing
    place = int(model.objective.place)
    torch.testing.assert_close(model.objective.queue[place - 1], keys[-1][-1])  # the last key of training stands last
    assert model.slow_encoder is not None and not model.step_trace
    slow, fast = (next(x.blocks.parameters()) for x in (model.slow_encoder, model.encoder))
    assert float((slow - fast).detach().abs().max()) > 0
    assert not any(p.requires_grad for p in model.slow_encoder.parameters())


def test_a_classifier_starts_from_its_encoder(tmp_path: Path, songs: Path) -> None:
    model, data = task(songs)
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    parts = {"tokenizer": data.tokenizer, **data.label_parts, "optimizer": partial(torch.optim.AdamW, lr=1e-3)}
    classifier = Classifier(model=NETWORK, sharing="cross_stitch", **{**parts, "labels": {**parts["labels"], "b": ("x", "y")}})
    found = classifier.weights_from(saved, tmp_path / "end.ckpt")
    assert found.keys() == classifier.state_dict().keys()
    for network in ("0", "1"):
        for name, value in model.encoder.state_dict().items():
            torch.testing.assert_close(found[f"model.networks.{network}.{name}"], value)
    other = Classifier(model=partial(NETWORK, num_layers=3), **parts)
    with pytest.raises(ValueError, match=r"its network has no blocks\.2"):
        other.weights_from(saved, tmp_path / "end.ckpt")
    satb = Classifier(model=NETWORK, **{**parts, "tokenizer": SatbGrid(genres=[])})
    with pytest.raises(ValueError, match="its tokens"):
        satb.weights_from(saved, tmp_path / "end.ckpt")


@pytest.mark.parametrize("prefix", ["encoder.", "model.networks.0."])
def test_a_language_model_starts_from_an_encoder(tmp_path: Path, songs: Path, prefix: str) -> None:
    model, data = task(songs)
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    if prefix != "encoder.":
        model = Classifier(model=NETWORK, tokenizer=data.tokenizer, **data.label_parts, optimizer=adamw)  # type: ignore[assignment]
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    plain = LanguageModel(tokenizer=data.tokenizer, model=partial(NETWORK, causal=True), optimizer=adamw)
    plain.load_state_dict(plain.weights_from(saved, tmp_path / "end.ckpt"))
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, saved["state_dict"][f"{prefix}{name}"])
    wider = LanguageModel(tokenizer=data.tokenizer, model=partial(NETWORK, causal=True, dim=32), optimizer=adamw)
    with pytest.raises(RuntimeError, match="size mismatch"):  # which `etude.run.recipes.load_weights` tells in one line
        wider.load_state_dict(wider.weights_from(saved, tmp_path / "end.ckpt"))
    deeper = LanguageModel(tokenizer=data.tokenizer, model=partial(NETWORK, causal=True, num_layers=3), optimizer=adamw)
    with pytest.raises(ValueError, match=r"its network has no blocks\.2"):
        deeper.weights_from(saved, tmp_path / "end.ckpt")


def test_evaluation_shows_floors_beside_the_encoder(tmp_path: Path, songs: Path) -> None:
    model, data = task(songs)
    rows = score_representation(task=model, datamodule=data, folder=tmp_path, split="val", shares=[1.0], fine_tune_steps=2)
    assert [row["method"] for row in rows] == [
        "most frequent class", "this encoder, logistic regression", "random encoder, logistic regression",
        "n-grams, logistic regression", "this encoder, 5 nearest", "random encoder, 5 nearest",
        "this encoder, fine-tuned", "supervised from scratch",
    ]  # fmt: skip
    for name in ("probes.csv", "pieces_genre.png", "report.html"):
        assert (tmp_path / name).stat().st_size > 0
    points = (tmp_path / "pieces_genre.csv").read_text().splitlines()
    assert points[0] == "piece,class,x,y" and points[1].startswith("song") and len(points) == 1 + rows[0]["pieces"]
    vectors = piece_vectors(model, data.evaluation_loader("train"))
    assert sorted(vectors) == sorted(data.view("train").table["row"].tolist())
    with pytest.raises(ValueError, match=r"task\.split=train is not held out; choose val or test"):
        score_representation(task=model, datamodule=data, folder=tmp_path, split="train")


def test_one_class_alone_is_told(tmp_path: Path, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = task(songs)
    classes = data.classes
    monkeypatch.setattr(data, "classes", lambda part: {label: 0 * each for label, each in classes(part).items()})
    with pytest.raises(
        ValueError, match=r"all training pieces have the same genre, \w+: nothing to tell apart; give data of several"
    ):
        score_representation(task=model, datamodule=data, folder=tmp_path, split="val", shares=[1.0], fine_tune_steps=0)


def test_the_random_encoder_is_initialised_as_a_new_one_is(songs: Path) -> None:
    model, _ = task(songs)
    model.encoder.embedding.weight.data.fill_(1.0)
    found = untrained(model, seed=0).encoder
    assert 0.015 < float(found.embedding.weight.detach().std()) < 0.025 and (model.encoder.embedding.weight == 1).all()
    assert 0.015 < float(found.blocks[0].feed_forward.gate.weight.detach().std()) < 0.025


@pytest.mark.parametrize("option", ["semitones", "tempi", "note_values", "voices", "crop", "hide"])
def test_masked_tokens_refuse_what_is_of_views(songs: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"task.{option}=.* is of views"):
        task(songs, "masked", **{option: [0.5, 1.0] if option == "crop" else 0})


def test_a_share_of_the_labels_keeps_two_of_each_class() -> None:
    true = np.array([0] * 50 + [1] * 10 + [2])
    places = chosen(true, 0.1, seed=0)
    assert np.bincount(true[places]).tolist() == [5, 2, 1] and (np.diff(places) > 0).all()
    assert len(chosen(true, 1.0, seed=0)) == 61


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": [0.0, 1.0]}, r"task.crop=\[0.0, 1.0\] must be"),
        ({"hide": 1.0}, "task.hide=1.0"),
        ({"stretch": 0.1}, "task.stretch=0.1 is not of views of scores"),
        ({"kind": "mae"}, "objective=mae hides patches of mels"),
    ],
)
def test_wrong_options_are_refused(songs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(songs, options.pop("kind", "simclr"), **options)


def test_fine_tuning_uses_the_chosen_labels_alone_and_leaves_the_encoder_as_it_is(
    songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = task(songs)
    before = weights(model)
    true, rows = data.classes("train")["genre"], np.array(sorted(data.view("train").table["row"].tolist()))
    few = np.concatenate([rows[true[rows] == one][:2] for one in (0, 1)])
    options: dict[str, Any] = {"label": "genre", "num_classes": 2, "steps": 60, "lr": 1e-2, "seed": 0}
    tuned = fine_tuned(model, data, rows=few, **options)
    assert same(before, weights(model)) and not same(before, weights(tuned.encoder))
    logits = piece_vectors(tuned, data.evaluation_loader("train"))
    assert [int(logits[row].argmax()) for row in few.tolist()] == true[few].tolist()  # it has learned these four
    again = fine_tuned(model, data, rows=few, **options)
    assert same(weights(tuned), weights(again))
    drawn = {int(p) for batch in data.train_dataloader() for p in batch["piece"].unique() if p >= 0}
    assert len(drawn) > 4  # training draws all pieces again

    def stop(*_: Any) -> None:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(FineTuning, "losses", stop)
    with pytest.raises(Stopped, match="SIGTERM"):  # Lightning would end the program without a word
        fine_tuned(model, data, rows=few, **options)


def test_a_probe_chooses_its_regularisation_by_the_labels_it_has() -> None:
    draws = np.random.default_rng(0)
    true = np.repeat([0, 1], 60)
    noisy = np.concatenate([true[:, None] + draws.normal(0, 1.5, (120, 1)), draws.normal(0, 1, (120, 100))], axis=1)
    assert probe(noisy, true)[-1].C == 0.01 and probe(noisy[[0, 1, 60, 61]], true[[0, 1, 60, 61]])[-1].C == 1.0


def test_two_pieces_of_each_class_are_named() -> None:
    plane = np.array([[0.0, 0], [1, 0], [9, 0], [0, 5], [0, 6]])
    assert typical(plane, ["a", "a", "a", "b", "b"]) == [1, 2, 3]  # of b, both are as far from the median
