"""Noisy student: sure labels of the teacher fill what is missing, rounds pass the weights on, stochastic depth, and resuming."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from symusic import Note
from torch import Tensor

from etude.core.task import Task
from etude.evaluation.teacher_samples import _beginnings
from etude.metrics.scores.dimensions import measure_features, quality_of_pieces
from etude.music.score import num_notes
from etude.techniques.data.noisy_student import NoisyStudent
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.row_documents import documents_of_rows
from tests.robust import classifier, first_batch
from tests.songs import song, write_songs
from tests.tasks.test_classifier import batch as packed
from tests.tasks.test_classifier import task as small_classifier
from tests.test_composition import build as build_task
from tests.test_composition import fit
from tests.toys import same, trainer


def teach(folder: Path, make: Callable[[], Any]) -> dict[str, Any]:
    """Options that give `make()` as the teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "teacher.ckpt"
    torch.manual_seed(5)
    torch.save(make().state_dict(), path)

    def load(path: Path) -> tuple[Any, None]:
        teacher = make()
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher, None

    return {"teacher": str(path), "find": lambda ckpt, option: Path(ckpt), "load": load}


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Task, Any]]) -> dict[str, Any]:
    # all examples of the matrix have labels, so only the noise would show; its teacher of music knows nothing
    music = {"threshold": 0.01, "samples": 3, "share": 0.5} if kind == "language_model" else {}
    return {**teach(folder, lambda: build()[0]), "stochastic_depth": 0.7, "rounds": 2, **music}


def started(technique: NoisyStudent, task: Any, folder: Path, steps: int = 8) -> NoisyStudent:
    technique.setup(trainer(folder, max_steps=steps), task, "fit")
    return technique


def test_sure_labels_fill_what_is_missing(tmp_path: Path) -> None:
    options, task = teach(tmp_path, small_classifier), small_classifier()
    batch = packed(genre=(0, -1, -1, 1))
    teacher = small_classifier().eval()
    with torch.no_grad():
        probability = teacher.class_logits(batch)["genre"].softmax(-1)
    threshold = float(probability[1:3].max(-1).values.mean())  # between the two
    technique = started(NoisyStudent(threshold=threshold, **options), task, tmp_path)
    found = technique.transform_batch(task, batch)
    sure = probability.max(-1).values >= threshold
    assert sure[1] != sure[2]
    expected = torch.where(sure, probability.argmax(-1), -1)
    expected[0], expected[3] = 0, 1
    assert task.documents(found, "label_genre").tolist() == expected.tolist()
    assert (found["label_genre"][batch["documents"] < 0] == -1).all()
    metre = int(teacher.class_logits(batch)["metre"][1].softmax(-1).max() >= threshold)
    assert (technique.asked, technique.given) == (3, 1 + metre)
    assert torch.equal(batch["label_genre"], packed(genre=(0, -1, -1, 1))["label_genre"])


def test_the_student_becomes_the_teacher_after_a_round(tmp_path: Path) -> None:
    options, task = teach(tmp_path, small_classifier), small_classifier()
    technique = started(NoisyStudent(rounds=2, **options), task, tmp_path, steps=8)
    first = technique.teacher.heads["head_genre"].weight.clone()
    with torch.no_grad():
        task.heads["head_genre"].weight += 1
    for step in range(1, 9):
        task.steps_trained = step
        technique.after_step(task)
        weight = technique.teacher.heads["head_genre"].weight
        assert torch.equal(weight, first) == (step < 4)
    assert technique.round == 1 and torch.equal(weight, task.heads["head_genre"].weight)


def test_stochastic_depth_keeps_the_mean(tmp_path: Path) -> None:
    task = small_classifier(head_dropout=0.0)
    block: Any = task.residual_blocks[1]
    plain = block.forward
    technique = started(NoisyStudent(stochastic_depth=0.5, **teach(tmp_path, small_classifier)), task, tmp_path)
    depth: Any = technique.depth
    assert [depth.kept(number) for number in range(2)] == [0.75, 0.5]
    left = 0
    for number in range(400):
        depth.draw(technique.generator(number))
        left += 1 in depth.left_out
    assert 160 < left < 240
    x = torch.randn(1, 3, 16)

    def double(x: Tensor) -> Tensor:
        return 2 * x

    wrapped = depth.around(double, 1, block)
    depth.left_out = {1}
    assert torch.equal(wrapped(x), x)
    depth.left_out = set()
    torch.testing.assert_close(wrapped(x), 3 * x)  # x + x / 0.5; the mean of both is 2 x
    block.eval()
    assert torch.equal(wrapped(x), 2 * x) and plain is not block.forward


def test_it_resumes_bit_for_bit_over_rounds(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    options = teach(tmp_path, lambda: classifier(songs)[0])

    class HalfLabelled(NoisyStudent):
        """Hides the labels of every other piece before it labels."""

        def transform_batch(self, task: Any, batch: Any) -> Any:
            hidden = batch["piece"] % 2 == 0
            return super().transform_batch(task, {**batch, "label_genre": batch["label_genre"].masked_fill(hidden, -1)})

    HalfLabelled.__module__ = NoisyStudent.__module__

    def run(folder: str, **more: Any) -> dict[str, Any]:
        technique = HalfLabelled(threshold=0.51, rounds=3, stochastic_depth=0.3, **options)
        return fit(tmp_path / folder, lambda: classifier(songs), [technique], **more)

    whole = run("whole", steps=9)
    run("half", steps=9, kill_at=5)
    rest = run("rest", steps=9, resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_what_the_teacher_labelled_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    songs = write_songs(tmp_path / "songs")
    options = teach(tmp_path, lambda: classifier(songs)[0])

    def run(folder: str, technique: NoisyStudent) -> str:
        capsys.readouterr()
        fit(tmp_path / folder, lambda: classifier(songs), [technique], steps=2)
        return capsys.readouterr().err

    told = "every training piece has a label for genre and half, so the teacher has nothing to label; add pieces without one"
    assert told in run("all", NoisyStudent(**options))

    class Hiding(NoisyStudent):
        """Hides all labels before it labels."""

        def transform_batch(self, task: Any, batch: Any) -> Any:
            return super().transform_batch(task, {**batch, "label_genre": torch.full_like(batch["label_genre"], -1)})

    hiding = Hiding(threshold=0.51, **options)
    line = run("none", hiding)
    assert f"the teacher gave {hiding.given} of the {hiding.asked} labels that were missing" in line
    assert hiding.asked >= hiding.given > 0


def test_bad_options_and_teachers_are_told(tmp_path: Path) -> None:
    for options, told in (
        ({"threshold": 1.0}, r"threshold is 1\.0, must be in \(0, 1\)"),
        ({"rounds": 0}, "rounds is 0, must be at least 1"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth is 1\.0, must be in \[0, 1\)"),
    ):
        given: dict[str, Any] = dict(options)
        with pytest.raises(ValueError, match=rf"technique\.noisy_student\.{told}"):
            NoisyStudent(**given)
    task = small_classifier()
    with pytest.raises(ValueError, match="technique noisy_student needs a teacher for this Classifier"):
        started(NoisyStudent(), task, tmp_path)
    other = teach(tmp_path / "other", partial(small_classifier, labels={"genre": ("classical", "folk")}))
    with pytest.raises(ValueError, match="is no Classifier of the same classes"):
        started(NoisyStudent(**other), task, tmp_path)
    apart = teach(tmp_path / "apart", partial(small_classifier, sharing="soft"))
    with pytest.raises(ValueError, match=r"has another network than this Classifier; set rounds=1"):
        started(NoisyStudent(rounds=2, **apart), task, tmp_path)
    for kind, told in (("gan", "ToyGan is neither"), ("grader", "Grader knows the labels of all its examples")):
        with pytest.raises(ValueError, match=told):
            started(NoisyStudent(), build_task(kind, tmp_path)[0], tmp_path)


def test_stochastic_depth_needs_a_single_device(tmp_path: Path) -> None:
    options, two = teach(tmp_path, small_classifier), trainer(tmp_path, max_steps=8, devices=2, strategy="ddp")
    NoisyStudent(**options).setup(two, small_classifier(), "fit")
    with pytest.raises(ValueError, match=r"stochastic_depth leaves blocks of Classifier without .*; set trainer\.devices=1"):
        NoisyStudent(stochastic_depth=0.5, **options).setup(two, small_classifier(), "fit")


def test_a_run_that_goes_on_refuses_another_teacher(tmp_path: Path) -> None:
    options = teach(tmp_path, small_classifier)
    state = started(NoisyStudent(**options), small_classifier(), tmp_path).state_dict()
    started(NoisyStudent(**options), small_classifier(), tmp_path).load_state_dict(state)
    torch.manual_seed(6)
    torch.save(small_classifier().state_dict() | {"extra": torch.zeros(1)}, options["teacher"])
    options["load"] = lambda path: (small_classifier(), None)
    again = started(NoisyStudent(**options), small_classifier(), tmp_path)  # the state is restored after setup
    with pytest.raises(ValueError, match=r"was taught by .*but here the teacher is .*give the same one"):
        again.load_state_dict(state)


def music(songs: Path) -> Any:
    return build_task("language_model", songs)


def test_good_samples_of_the_teacher_join_the_rows(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    task, data = music(songs)
    batch = first_batch(data)
    technique = NoisyStudent(threshold=0.01, samples=5, share=0.5, **teach(tmp_path, lambda: music(songs)[0]))
    run = trainer(tmp_path, max_steps=4)
    run._data_connector.attach_data(task, datamodule=data)
    technique.setup(run, task, "fit")
    technique.on_fit_start(run, task)
    kept = technique.samples
    assert kept.drawn == 5 and 0 < len(kept.bodies) <= 5 and 0.01 <= kept.quality <= 1
    assert all(len(body) < data.max_len for body in kept.bodies) and not all(kept.ended)
    replaced = 0
    for number in range(6):
        task.batches_trained = number
        found = technique.transform_batch(task, {**batch, "label_genre": torch.zeros_like(batch["piece"])})
        rows = (found["tokens"] != batch["tokens"]).any(1)
        replaced += int(rows.sum())
        assert (found["piece"][rows] == -1).all() and (found["label_genre"][rows] == -1).all()
        assert torch.equal(found["targets"][~rows], batch["targets"][~rows])
        for document in documents_of_rows({name: value[rows] for name, value in found.items()}, data.tokenizer):
            body = document.ids[document.ids >= data.tokenizer.first_body]
            source = next(n for n, each in enumerate(kept.bodies) if np.array_equal(each[: len(body)], body))
            assert document.plain and (not document.ends or kept.ended[source])
    assert replaced == 6  # half of two rows, in each batch
    strict = NoisyStudent(threshold=0.99, samples=2, **teach(tmp_path, lambda: music(songs)[0]))
    strict.setup(run, task, "fit")
    with pytest.raises(ValueError, match=r"noisy_student: none of 2 samples of the teacher has the quality 0\.99, the best"):
        strict.on_fit_start(run, task)


def test_quality_is_one_within_the_spread_of_music_and_low_far_away(tmp_path: Path) -> None:
    real = measure_features([song(seed, bars=6) for seed in range(16)])
    usual = quality_of_pieces(real, real)
    assert usual.min() > 0.5 and usual.mean() > 0.75
    strange = [song(20, bars=6) for _ in range(2)]
    for score in strange:
        for track in score.tracks:
            track.notes = type(track.notes)([Note(note.time, note.duration, 60, 80) for note in track.notes])
    monotone = quality_of_pieces(measure_features(strange), real)
    assert monotone.max() < usual.min() and monotone.max() < 0.6


def test_samples_of_byte_pairs_are_compared_with_music_of_as_many_tokens() -> None:
    class Bodies(list[np.ndarray]):
        body = list.__getitem__

    tokenizer = MidiTokTokenizer(bpe_vocab_size=900)
    pieces = Bodies(np.asarray(tokenizer.encode(song(number))) for number in range(6))
    tokenizer.train_bpe(pieces)
    longest = max(len(tokenizer.compress(piece)) for piece in pieces)
    assert longest < min(map(len, pieces))
    data: Any = SimpleNamespace(view=lambda split: pieces)
    found = _beginnings(data, tokenizer, longest, seed=0)
    assert sorted(map(num_notes, found)) == sorted(num_notes(tokenizer.decode(piece)) for piece in pieces)


def test_a_run_on_samples_resumes_bit_for_bit_over_rounds(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    options = teach(tmp_path, lambda: music(songs)[0])

    def run(folder: str, **more: Any) -> dict[str, Any]:
        technique = NoisyStudent(threshold=0.01, samples=3, share=0.5, rounds=2, **options)
        return fit(tmp_path / folder, lambda: music(songs), [technique], **more)

    whole = run("whole")
    for stop in (3, 6):
        run("half", kill_at=stop)
        rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
        assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_options_of_the_other_kind_of_task_are_told(tmp_path: Path) -> None:
    for options, told in (
        ({"samples": 0}, "samples is 0, must be at least 1"),
        ({"share": 1.0}, r"share is 1\.0, must be in \(0, 1\)"),
    ):
        given: dict[str, Any] = dict(options)
        with pytest.raises(ValueError, match=rf"technique\.noisy_student\.{told}"):
            NoisyStudent(**given)
    with pytest.raises(ValueError, match="for language models only, and this is a Classifier; leave samples and share out"):
        started(NoisyStudent(share=0.5, **teach(tmp_path, small_classifier)), small_classifier(), tmp_path)
