"""Prompts: a file, a folder or a list; what can't be continued is told, and the others are."""

from pathlib import Path
from typing import Any

import pytest
from symusic import Note, Score, Track

from etude.generation.asking import distinct, read_request
from etude.generation.samples import write_samples
from etude.report.media import read_table


def melody(first: int, notes: int = 4) -> Score:
    score = Score(480)
    score.tracks.append(Track(notes=[Note(480 * place, 480, first + place, 80) for place in range(notes)]))
    return score


class Echo:
    """A task whose samples are their prompts; it refuses prompts that begin with the pitch 1."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def check_request(self, labels: Any, *, prompt: Any = None, num_bars: int | None = None) -> list[str]:
        if prompt is not None and prompt.tracks[0].notes[0].pitch == 1:
            raise ValueError("prompt: too low")
        return [] if prompt is None or prompt.tracks[0].notes[0].pitch != 50 else ["of the prompt, something changes"]

    def sample(self, *, num_samples: int, prompt: Any, seed: int, **_: Any) -> list[Score]:
        prompts = prompt if isinstance(prompt, list) else [prompt]
        self.calls.append((len(prompts), num_samples, seed))
        return [each.copy() for each in prompts for _ in range(num_samples)]


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    (folder / "more").mkdir(parents=True)
    for name, pitch in (("b", 40), ("a", 50), ("more/a", 60)):
        melody(pitch).dump_midi(folder / f"{name}.mid")
    return folder


def test_samples_of_a_folder_are_named_after_their_prompts_in_one_batch(songs: Path, tmp_path: Path, capsys: Any) -> None:
    (songs / "broken.mid").write_bytes(b"MThd, but no more")
    melody(1).dump_midi(songs / "low.mid")
    task: Any = Echo()
    files = write_samples(task=task, folder=tmp_path / "run", prompt=str(songs), num_samples=2, audio=False, seed=5)
    assert [path.stem for path in files] == ["a-000", "a-001", "b-000", "b-001", "a_2-000", "a_2-001"]
    assert [Score(path).tracks[0].notes[0].pitch for path in files] == [50, 50, 40, 40, 60, 60]
    assert task.calls == [(3, 2, 5)]
    told, page = capsys.readouterr().err, (tmp_path / "run" / "report.html").read_text()
    for text in (told, page):
        assert "broken.mid" in text and "low.mid: prompt: too low" in text and "a: of the prompt, something changes" in text
    assert [row.name for row in read_table(tmp_path / "run" / "samples")] == [path.stem for path in files]
    assert "<h2>Prompts</h2>" in page


def test_one_prompt_at_a_time_where_each_fills_a_batch(songs: Path, tmp_path: Path) -> None:
    task: Any = Echo()
    write_samples(
        task=task, folder=tmp_path / "run", prompt=[str(songs / "b.mid"), str(songs / "a.mid")], num_samples=18, audio=False
    )
    assert task.calls == [(1, 16, 0), (1, 2, 16)] * 2


def test_a_single_file_keeps_its_plain_names(songs: Path, tmp_path: Path) -> None:
    task: Any = Echo()
    files = write_samples(task=task, folder=tmp_path / "run", prompt=str(songs / "b.mid"), num_samples=1, audio=False)
    assert [path.name for path in files] == ["000.mid"]
    files = write_samples(task=task, folder=tmp_path / "list", prompt=[str(songs / "b.mid")], num_samples=1, audio=False)
    assert [path.name for path in files] == ["b-000.mid"]


def test_what_holds_no_prompt_is_refused(songs: Path, tmp_path: Path) -> None:
    empty, bad = tmp_path / "empty", tmp_path / "bad"
    for folder in (empty, bad):
        folder.mkdir()
    (bad / "x.mid").write_bytes(b"nothing")
    melody(1).dump_midi(tmp_path / "low.mid")
    cases: list[tuple[Any, str]] = [
        (str(empty), r"empty: it holds no scores; give a folder with \.abc"),
        ([], r"prompt=\[\] names no score"),
        ([str(songs / "a.mid"), str(songs / "c.mid")], r"there is no file .*c\.mid"),
        (str(bad), r"x\.mid: "),
        ([str(tmp_path / "low.mid"), str(bad)], r"none of 2 can be continued, for example .*low\.mid"),
        (str(tmp_path / "low.mid"), r"^prompt: too low$"),
    ]
    for prompt, message in cases:
        with pytest.raises(ValueError, match=message):
            read_request({"prompt": prompt}, Echo())
    with pytest.raises(ValueError, match=r"infill takes one score, prompt= names 3"):
        read_request({"prompt": str(songs), "infill": {"bars": [1, 1]}}, Echo())


def test_names_differ() -> None:
    assert distinct(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]
