"""What is heard: samples of runs, folders of real music, held-out pieces. What can't be used is told or refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from etude.render.synthesizers import default_soundfont
from etude.report.media import Sample, write_table
from etude.studio.options import Options
from etude.studio.pieces import MOST, read_folder
from etude.studio.sessions import ListeningTest
from etude.studio.sources import find_sources
from tests.songs import write_songs
from tests.studio.conftest import tune, write_run
from tests.test_earlier_checkpoints import unpacked
from tests.test_run_audio import write_genres


def write_sounds(folder: Path, *names: str, rate: int = 22_050) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        soundfile.write(folder / name, np.random.default_rng([seed, rate]).normal(size=2 * rate) * 0.1, rate)
    return folder


def test_genres_come_from_the_table_and_from_subfolders(options: Callable[..., Options]) -> None:
    (source,) = find_sources(options())
    assert [piece.genre for piece in source.generated] == ["folk", "jazz"] * 3 and source.is_score
    assert {(Path(piece.file).parent.name, piece.genre) for piece in source.real} == {("folk", "folk"), ("jazz", "jazz")}


def test_damaged_files_are_left_out_and_told(
    options: Callable[..., Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "samples" / "001.mid").write_bytes(b"MThd no music")
    (tmp_path / "real" / "folk" / "empty.xml").touch()
    (source,) = find_sources(options())
    assert [piece.name for piece in source.generated] == ["000", "002", "003", "004", "005"] and len(source.real) == 8
    told = capsys.readouterr().err
    assert f"left out: {tmp_path / 'run' / 'samples' / '001.mid'}: damaged" in told
    assert "empty.xml: the file is empty" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"real": "gone"}, "real=gone: there is no such folder; give a folder of scores or audio"),
        ({"real": "empty"}, "real=empty: it holds no scores and no audio"),
        ({"real": "sounds"}, "real=sounds holds audio, .*run holds scores, and the sound alone would give the answer away"),
        ({"real": "run/samples"}, "of run and .*run/samples/000.mid of the real music are the same file"),
        ({"runs": ("gone",)}, r"runs=\[gone\]: there is no such folder"),
        ({"runs": ()}, r"runs=\[\] is empty; give at least one run"),
        (
            {"runs": ("trained",)},
            "runs: .*trained holds no samples; make some with `etude generate ckpt=.*trained num_samples=20`",
        ),
        ({"real": None}, "real=null takes held-out pieces .*run has no checkpoint that tells them; .*real=FOLDER"),
        ({"real": "torn"}, "real=torn: none of its 1 score can be read, see above"),
    ],
)
def test_what_can_not_be_compared_is_refused_in_one_line(
    options: Callable[..., Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = options(**{"real": "real", "runs": ("run",), **given})
    (tmp_path / "empty").mkdir()
    write_sounds(tmp_path / "sounds", "a.flac")
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.mid").write_bytes(b"MThd")
    with pytest.raises(ValueError, match=told) as error:
        find_sources(asked)
    assert "\n" not in str(error.value)


def test_of_style_transfer_the_restyled_samples_are_generated_and_the_sources_are_not(tmp_path: Path) -> None:
    place = write_sounds(tmp_path / "run" / "samples", "real_folk_0.wav", "fake_jazz_from_folk_0.wav")
    made = {"fake_jazz_from_folk_0": {"from": "folk", "to": "jazz"}, "real_folk_0": {"from": "folk"}}
    write_table(place, [Sample(name, sound=place / f"{name}.wav", values=values) for name, values in made.items()])
    write_sounds(tmp_path / "real" / "jazz", "a.mp3", "b.flac", rate=44_100)
    (source,) = find_sources(Options(real=str(tmp_path / "real"), runs=(str(tmp_path / "run"),)))
    assert [(piece.name, piece.genre, piece.rate) for piece in source.generated] == [("fake_jazz_from_folk_0", "jazz", 22_050)]
    assert [(piece.name, piece.genre) for piece in source.real] == [("a", "jazz"), ("b", "jazz")] and not source.is_score


def test_a_plain_folder_of_restyled_audio_is_a_run(tmp_path: Path) -> None:
    write_sounds(tmp_path / "restyled", "a_jazz.wav")
    write_sounds(tmp_path / "real", "b.wav", rate=16_000)
    (source,) = find_sources(Options(real=str(tmp_path / "real"), runs=(str(tmp_path / "restyled"),)))
    assert source.label == "restyled" and [piece.name for piece in source.generated] == ["a_jazz"]


def test_an_option_for_scores_is_refused_where_audio_is_played(tmp_path: Path) -> None:
    write_sounds(tmp_path / "restyled", "a.wav", "b.wav")
    write_sounds(tmp_path / "real", "c.wav", "d.wav", rate=16_000)
    given = {"real": str(tmp_path / "real"), "runs": (str(tmp_path / "restyled"),), "results": str(tmp_path / "r.sqlite")}
    asked = Options(**given, questions=2, seconds=1.5, soundfont=str(default_soundfont()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are for scores, and this test plays audio; leave them out"):
        ListeningTest(asked, tmp_path)
    test = ListeningTest(replace(asked, soundfont=None), tmp_path)
    assert test.cutter.rate == 16_000 and (tmp_path / "r.sqlite").is_file()  # the lowest rate of both sides


def test_of_many_files_some_are_drawn_by_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(0).dump_midi(tmp_path / "first.mid")
    for number in range(MOST + 20):
        shutil.copy(tmp_path / "first.mid", tmp_path / f"{number:04d}.mid")
    one, two = ([piece.file for piece in read_folder(tmp_path, scores=True, seed=seed)] for seed in (0, 1))
    assert len(one) == len(two) == MOST and one != two
    assert f"holds {MOST + 21} scores; {MOST} of them, drawn by seed=0, are used" in capsys.readouterr().err


def test_a_run_is_compared_with_held_out_pieces_rounded_by_its_own_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_songs(tmp_path / "songs", count=20)
    run = write_run(tmp_path / "outputs" / "run", genres=False)
    (run / "checkpoints").mkdir()
    unpacked("remi", tmp_path).rename(run / "checkpoints" / "best.ckpt")
    (run / "config.yaml").write_text("seed: 0\n")
    generated = write_run(tmp_path / "outputs" / "made", seed=300)
    (generated / "generate.yaml").write_text(f"ckpt: {run / 'checkpoints' / 'best.ckpt'}\n")
    for asked in ("last", str(generated)):
        (source,) = find_sources(Options(runs=(asked,)))
        assert source.tokenizer is not None and source.tempo_bpm == 120
        assert 2 <= len(source.real) <= 8 and {piece.genre for piece in source.real} <= {"classical", "folk"}
        assert all(len(piece.sha256) == 64 and piece.seconds > 5 for piece in source.real)


def test_a_style_model_is_compared_with_held_out_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_genres(tmp_path / "audio")
    run = tmp_path / "run"
    write_sounds(run / "samples", "fake_jazz_from_folk_0.wav", rate=16_000)
    (run / "checkpoints").mkdir()
    unpacked("style", tmp_path).rename(run / "checkpoints" / "best.ckpt")
    (run / "config.yaml").write_text("seed: 0\n")
    (source,) = find_sources(Options(runs=(str(run),)))
    assert source.rate is not None and source.tokenizer is None and not source.is_score and source.real
    assert {piece.rate for piece in source.real} == {source.rate}
