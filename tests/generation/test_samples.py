"""Samples: what can't be rendered here is said before anything is drawn."""

from pathlib import Path
from typing import Any

import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from etude.generation.requests import asked_and_got, told_of_key
from etude.generation.samples import write_samples
from etude.tokens.changes import changes
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.requests import check_trained, request_notes
from etude.tokens.satb import SatbGrid


def test_a_missing_synthesizer_is_named_before_samples_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    task: Any = None  # not touched
    with pytest.raises(ValueError, match=r"needs the program fluidsynth.*install it"):
        write_samples(task=task, folder=tmp_path / "run", synthesizer="fluidsynth")
    assert not (tmp_path / "run").exists()


def test_the_grid_refuses_what_it_cannot_write() -> None:
    grid = SatbGrid(genres=["a"])
    with pytest.raises(ValueError, match=r"metre=3/4: this SATB grid writes bars of 16 steps.*tokenizer=remi"):
        grid.check_request({"metre": "3/4"})
    with pytest.raises(ValueError, match=r"programs=\[40\].*choir.*tokenizer=remi"):
        grid.check_request({"programs": [40]})
    grid.check_request({"metre": "4/4", "programs": [52], "key": "G major"})
    SatbGrid(bar_tokens=True).check_request({"metre": "3/4"})


def test_a_label_that_the_model_was_not_trained_with_is_refused() -> None:
    remi = MidiTokTokenizer(genres=["a"])
    with pytest.raises(ValueError, match=r"metre=3/4: this model was trained without that label.*it knows key; leave metre out"):
        check_trained({"key": "C major", "metre": "3/4"}, {"key": ["C major"], "metre": []})
    with pytest.raises(ValueError, match="it knows no labels"):
        check_trained({"key": "C major"}, {})
    check_trained({"key": "C major", "metre": None}, {"key": ["C major"]})
    check_trained({"key": "C major"}, None)  # not known: a model made without data
    for refused in ("17/4", "3/32"):
        with pytest.raises(ValueError, match=f"metre {refused}"):
            remi.check_request({"metre": refused})


def test_a_value_that_no_training_piece_has_and_one_that_is_asked_roughly_are_told() -> None:
    remi = MidiTokTokenizer(genres=["a"])
    trained = {"metre": ["4/4", "6/8"], "tempo_bpm": ["95", "226"], "programs": ["strings"], "key": ["C major"]}
    assert request_notes(remi, {"metre": "4/4", "key": "C major", "tempo_bpm": 95, "programs": None}, trained) == []
    assert request_notes(remi, {"metre": "3/4"}, trained) == [
        "metre=3/4: no training piece has 3/4, so the model has not learnt what it means; it knows 4/4, 6/8"
    ]
    assert request_notes(remi, {"tempo_bpm": 300}, trained) == [
        "tempo_bpm=300: the model is asked for the nearest tempo that has a token, 226"
    ]
    rough, strange = request_notes(remi, {"metre": "7/8"}, trained)
    assert rough.startswith("metre=7/8 has no token of its own") and "no training piece has other" in strange
    assert request_notes(remi, {"programs": [40]}, trained) == ["programs=[40]: the model is asked by family: strings"]
    assert request_notes(remi, {"metre": "3/4"}, None) == []


def test_what_a_tokenizer_changes_in_a_prompt_is_listed() -> None:
    prompt = Score(480)
    prompt.tempos.append(Tempo(0, qpm=93))
    prompt.time_signatures.append(TimeSignature(0, 3, 4))
    prompt.tracks.append(Track(program=40, notes=[Note(480 * n, 480, 60, 80) for n in range(6)]))
    prompt.tracks.append(Track(is_drum=True, notes=[Note(480, 480, 38, 80)]))
    found = changes(prompt, SatbGrid().decode(SatbGrid().encode_prompt(prompt)))
    assert found == [
        "the metre 3/4 becomes 4/4",
        "the tempo 93 becomes 120 beats per minute",
        "the programs [40] become [52]",
        "1 drum notes become 0",
        "6 pitched notes become 1 (repeated ones are joined, others left out)",
    ]
    assert changes(prompt, prompt) == []


def test_asked_and_got_counts_the_samples_that_have_it() -> None:
    scores = []
    for numerator in (3, 3, 4, 4):  # of 4/4, which is also how cut time is written
        score = Score(480)
        score.time_signatures.append(TimeSignature(0, numerator, 4))
        score.tracks.append(Track(program=41, notes=[Note(0, 4800, 60, 80)]))  # rings on for bars, and begins in the first
        scores.append(score)
    asked = {"metre": "3/4", "tempo_bpm": 125, "programs": [40], "num_bars": 2, "genre": "a"}
    assert [(label, share) for label, _, _, share in asked_and_got(asked, scores)] == [
        ("metre", "50% of 4"), ("tempo_bpm", "100% of 4"), ("programs", "100% of 4"), ("num_bars", "0% of 4"),
    ]  # fmt: skip
    assert asked_and_got({"num_bars": 1}, scores) == [("num_bars", "1", "1", "100% of 4")]
    assert asked_and_got({"metre": "2/2"}, scores) == [("metre", "2/2", "3/4", "50% of 4")]


def test_a_sample_without_notes_is_told_and_the_others_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Beginner:
        """Draws one empty score and one of a note."""

        def check_request(self, labels: Any, **_: Any) -> list[str]:
            return []

        def sample(self, **_: Any) -> list[Score]:
            empty, played = Score(480), Score(480)
            empty.tracks.append(Track())
            played.tracks.append(Track(notes=[Note(0, 480, 60, 80)]))
            return [empty, played]

    task: Any = Beginner()
    files = write_samples(task=task, folder=tmp_path, num_samples=2, audio=False)
    assert [path.name for path in files] == ["000.mid", "001.mid"] and all(path.is_file() for path in files)
    assert (tmp_path / "samples" / "001.png").is_file() and not (tmp_path / "samples" / "000.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert '<a href="samples/001.mid">' in page and 'alt=""' not in page and "Piano roll of sample 001" in page
    assert "000.mid: no notes" in capsys.readouterr().err and "no notes" in (tmp_path / "report.html").read_text()


def melody(*pitches: int) -> Score:
    score = Score(480)
    score.tracks.append(Track(notes=[Note(480 * place, 480, pitch, 80) for place, pitch in enumerate(pitches)]))
    return score


C_MAJOR, A_MINOR, WHOLE_TONES = melody(60, 64, 67, 72, 65, 69, 60), melody(57, 60, 64, 69, 62, 65, 57), melody(*range(60, 72, 2))


def test_samples_that_are_not_in_the_key_are_named_with_a_remedy() -> None:
    assert told_of_key("C major", [C_MAJOR], prompt=False) == []
    (line,) = told_of_key("C major", [A_MINOR, C_MAJOR, Score(480), A_MINOR], prompt=False)
    assert line.startswith("not in C major: 000, 003 (A minor); 002 (no notes); give another seed=")
    assert "000 (no key)" in told_of_key("D major", [WHOLE_TONES], prompt=False)[0]
    assert told_of_key("Am", [C_MAJOR], prompt=True)[0].endswith("give a prompt in that key, or leave key= out")


def test_a_key_that_was_not_reached_is_told_on_the_page_and_its_rounds_in_the_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn:
        """Draws major and minor, whatever is asked."""

        def check_request(self, labels: Any, **_: Any) -> list[str]:
            return []

        def sample(self, *, on_step: Any, on_round: Any, **_: Any) -> list[Score]:
            for number, count in ((1, 2), (2, 1), (3, 1)):
                on_round(number, 8, count)
                on_step(7)
            return [C_MAJOR, A_MINOR]

    task: Any = Stubborn()
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    write_samples(task=task, folder=tmp_path, num_samples=2, key="C major", audio=False)
    told = capsys.readouterr().err
    assert "round 3 of 8 at most, 1 sample not in the key yet" in told and "round 1" not in told
    line = next(line for line in told.splitlines() if line.startswith("not in C major: 001 (A minor); "))
    assert line in (tmp_path / "report.html").read_text()
