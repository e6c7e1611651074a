"""Which recordings are held out: whole files, never copies on two sides, parts of long ones, pairs together."""

import itertools
from pathlib import Path

import pytest
import soundfile
import torch

from etude.data.audio.corpora import AudioFolder
from etude.data.audio.splits import Piece, assign
from tests.data.audio.files import CONTRACT, RATE, SEGMENT, inline, module, sound, write, write_styles


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)


def test_splits_are_by_file_and_stay_when_files_are_added(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", files=14)

    def splits() -> dict[str, str]:
        return {row["name"]: row["split"] for row in module(root, tmp_path / "cache").manifest().to_pylist()}

    before = splits()
    assert len(before) == 28
    for style in ("folk", "rock"):
        assert {split for name, split in before.items() if name.startswith(style)} == {"train", "val", "test"}
    for number in range(20, 24):
        write(root / "folk" / f"new{number}.wav", sound(number + 500))
    after = splits()
    assert sum(after[name] != split for name, split in before.items()) <= 2


def test_copies_stay_on_one_side_even_across_styles(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", files=12)
    for number in range(12):
        for target in (root / "folk" / f"copy{number}.wav", root / "rock" / f"stolen{number}.wav"):
            target.write_bytes((root / "folk" / f"folk{number:02d}.wav").read_bytes())
    rows = module(root, tmp_path / "cache").manifest().to_pylist()
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(rows) == 48
    assert all(len(side) == 1 for side in sides.values())


def test_of_eight_equal_files_none_is_cut_whatever_their_hashes() -> None:
    """Two times in a hundred the hashes left less than 40 % to training, and the end of one file was all that was held out."""
    about = {"song": "", "split": "", "source": "", "licence": "", "key": "", "start": 0, "stop": 100}
    ratios = {"train": 0.8, "val": 0.1, "test": 0.1}
    for draw in range(300):
        given = [
            Piece(name=f"{number}", style=style, group=f"{draw}/{style}/{number}", **about)  # type: ignore[arg-type]
            for style in ("folk", "rock")
            for number in range(8)
        ]
        pieces, lines = assign(given, ["folk", "rock"], ratios, segment=16, gap=4, frame_seconds=0.008, by_song=False)
        assert len(pieces) == 16 and not lines
        for style in ("folk", "rock"):
            splits = [piece.split for piece in pieces if piece.style == style]
            assert splits.count("train") >= 4 and {*splits} == {"train", "val", "test"}


def test_a_style_of_one_long_file_holds_out_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "audio"
    write(root / "folk" / "album.wav", sound(1, seconds=10.0))
    for number in range(2):
        write(root / "rock" / f"side{number}.wav", sound(number, seconds=3.0 + number))
    data = module(root, tmp_path / "cache")
    parts = sorted((row["start"], row["stop"], row["split"]) for row in data.manifest().to_pylist() if row["style"] == "folk")
    assert [split for _, _, split in parts] == ["train", "val", "test"]
    assert all(one[1] + 4 <= two[0] for one, two in itertools.pairwise(parts))  # no sample in two windows
    assert parts[0][0] == 0
    assert parts[-1][1] == CONTRACT.num_frames(10 * RATE)
    assert 0.75 < (parts[0][1] - parts[0][0]) / parts[-1][1] < 0.85
    assert [data.num_pieces(split, "rock") for split in ("train", "val", "test")] == [2, 1, 1]
    assert not data.paired
    err = capfd.readouterr().err
    assert "folk has few or very long files: the end of folk/album.wav is held out for val and test" in err
    samples = data.samples("val", "folk", 0)
    whole, _ = soundfile.read(root / "folk" / "album.wav", dtype="float32")
    start, stop = parts[1][0] * CONTRACT.hop_length, parts[1][1] * CONTRACT.hop_length
    assert torch.equal(samples, torch.from_numpy(whole[start:stop]))


def test_long_files_are_not_held_out_at_the_cost_of_training(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", files=8)
    for salt in range(6):  # whatever side a hash puts the long one on
        for path in (root / "folk").iterdir():
            path.unlink()
        write(root / "folk" / "long.wav", sound(100 + salt, seconds=8.0))
        for number in range(3):
            write(root / "folk" / f"jingle{number}.wav", sound(1000 * salt + number, seconds=0.4))
        rows = [row for row in module(root, tmp_path / "cache").manifest().to_pylist() if row["style"] == "folk"]
        frames = {split: sum(r["stop"] - r["start"] for r in rows if r["split"] == split) for split in ("train", "val", "test")}
        assert min(frames.values()) >= SEGMENT
        assert frames["train"] > 0.4 * sum(frames.values())


def test_too_little_audio_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    for style in ("folk", "rock"):
        write(tmp_path / "audio" / style / "short.wav", sound(1 if style == "folk" else 2, seconds=0.3))
    with pytest.raises(ValueError, match=r"folk has too little audio to hold some out.*short\.wav, lasts 0\.3 s and needs 0\.4"):
        module(tmp_path / "audio", tmp_path / "cache").prepare()


def test_equal_names_in_all_styles_are_pairs(tmp_path: Path) -> None:
    for number in range(9):
        for place, style in enumerate(("folk", "rock")):
            tune = sound(number, seconds=0.5 + 0.05 * number + 0.1 * place, hertz=300.0 + 100 * number)
            write(tmp_path / "audio" / style / f"song{number}.wav", tune * (1 - 0.3 * place))
    data = module(tmp_path / "audio", tmp_path / "cache")
    assert data.paired
    for split in ("train", "val", "test"):
        songs = [[data.piece(split, s, i).song for i in range(data.num_pieces(split, s))] for s in data.styles]
        assert songs[0] == songs[1] != []
    rows = 0
    for batch in data.val_dataloader():
        rows += batch["mel"].shape[1]
        loudest = batch["mel"].amax(3).argmax(2)
        assert torch.equal(loudest[0], loudest[1])  # the same tone at the same place in both styles
    common = [min(data.piece("val", s, i).frames for s in data.styles) // SEGMENT for i in range(data.num_pieces("val", "folk"))]
    assert rows == sum(common)
    apart = module(tmp_path / "audio", tmp_path / "cache", corpus=AudioFolder(root=str(tmp_path / "audio"), paired=False))
    assert len(apart.manifest()) == 18


def test_pairs_that_are_none_are_refused(tmp_path: Path) -> None:
    root = write_styles(tmp_path / "audio", files=4)
    with pytest.raises(ValueError, match="paired=true"):
        module(root, tmp_path / "cache", corpus=AudioFolder(root=str(root), paired=True)).prepare()
