"""The data module from files to batches: caches, bad input, exact resume."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from symusic import Note, Score, Track

from etude.data.scores.corpora import Folder
from etude.data.scores.manifest import lopsided_splits
from etude.data.scores.module import MusicDataModule
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.data.scores.pieces import Troubled, quartet, write_folder

SMALL: dict[str, Any] = {"max_len": 400, "batch_size": 2, "batches_per_epoch": 6, "prepare_workers": 1, "seed": 5}


def module(root: Path, cache: Path, **changes: Any) -> MusicDataModule:
    options = {"corpus": Folder(root=str(root)), "tokenizer": SatbGrid, "cache_dir": str(cache), "transpose": [-3, 3]}
    return MusicDataModule(**{**options, **SMALL, **changes})


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scores and a warm cache of it."""
    base = tmp_path_factory.mktemp("data")
    root = write_folder(base / "scores", pieces=30)
    module(root, base / "cache").prepare()
    return root, base / "cache"


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_manifest_tells_about_every_piece(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    table = data.manifest()
    assert len(table) == 30
    assert {"path", "name", "sha256", "source", "licence", "genre", "key", "tempo_bpm", "metre", "bars", "notes",
            "tracks", "duration_beats", "split", "group"} <= set(table.column_names)  # fmt: skip
    row = table.slice(0, 1).to_pylist()[0]
    assert (row["genre"], row["metre"], row["tempo_bpm"], row["tracks"]) == ("folk", "4/4", 90.0, 4)
    assert (row["bars"], row["notes"], row["duration_beats"]) == (4, 64, 16.0)
    assert sum(len(data.manifest(split)) for split in ("train", "val", "test")) == 30
    assert data.tokenizer.genres == ("folk", "jazz")


def test_the_labels_of_training_are_told_with_their_values(ready: tuple[Path, Path]) -> None:
    asked = module(*ready, transpose=None).trained_labels()
    assert list(asked) == ["genre", "key", "metre", "tempo_bpm", "num_bars", "programs"]
    assert (asked["genre"], asked["metre"]) == (["folk", "jazz"], ["4/4"])
    assert asked["tempo_bpm"] == ["95"]
    moved = module(*ready, transpose=[-3, 3], tempo_scale=[0.5, 2.0], controls=["key", "tempo_bpm"]).trained_labels()
    assert list(moved) == ["key", "tempo_bpm"] and set(asked["key"]) < set(moved["key"])
    assert {"48", "95", "190"} <= set(moved["tempo_bpm"])
    assert module(*ready, controls=[]).trained_labels() == {}


def test_what_a_tokenizer_changes_in_training_pieces_is_told_with_counts(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=10)
    for path in sorted(root.rglob("*.mid"))[::2]:
        score = Score(str(path))
        quarter = score.ticks_per_quarter
        score.tracks.append(Track(is_drum=True, notes=[Note(quarter * n, quarter // 2, 38, 80) for n in range(8)]))
        score.dump_midi(path)
    data = module(root, tmp_path / "cache", split=(1.0, 0.0, 0.0))
    found = data.changed_pieces()
    assert len(found) == 10 and sum(changes.get("lose drums", 0) for _, changes in found) == 5 * 8
    line = data.told_changes(found)
    assert line.startswith("of the 10 training pieces, looked at as SatbGrid holds them, ") and "\n" not in line
    assert "5 lose drums (40)" in line and line.endswith("tokenizer=remi keeps them")
    assert len(data.changed_pieces(most=3)) == 3
    assert data.told_changes(data.changed_pieces(most=3)).startswith("of 3 of the 10 training pieces")
    kept = module(root, tmp_path / "cache", split=(1.0, 0.0, 0.0), tokenizer=MidiTokTokenizer)
    assert kept.told_changes(kept.changed_pieces()) == ""


def test_pieces_are_described_and_chosen_by_rules(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    columns, table = data.pieces(), data.manifest("train")
    assert {"genre", "bars", "tokens", "rhythmic_syncopation", "structural_length"} <= {
        name.removeprefix("complexity_") for name in columns
    }
    assert all(len(values) == len(table) for values in columns.values()) and (columns["tokens"] > 0).all()
    folk = columns["genre"] == "folk"
    data.admit("folk", lambda rows, draw: 1.0 * folk[rows])
    for batch in data.train_dataloader():
        held = batch["piece"][batch["piece"] >= 0]
        assert folk[held.numpy()].all()
        assert torch.equal(batch["piece"] >= 0, batch["documents"] >= 0)


def test_tokens_are_the_tokenizers_and_scores_the_files(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    for split in ("train", "val", "test"):
        for index in range(len(data.view(split))):
            score = data.score(split, int(data.view(split).table[index]["row"]))
            assert np.array_equal(data.tokenizer.encode(score), data.view(split).body(index))


def test_batches_have_the_shapes_and_kinds_that_training_expects(ready: tuple[Path, Path]) -> None:
    batches = list(module(*ready).train_dataloader())
    assert len(batches) == 6
    for batch in batches:
        assert {tuple(values.shape) for values in batch.values()} == {(2, 400)}
        assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
        assert batch["documents"].dtype == batch["positions"].dtype == torch.int32
        assert {"feature_position", "feature_voice"} <= set(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch_is_exact(ready: tuple[Path, Path], workers: int) -> None:
    straight = module(*ready, num_workers=workers).train_dataloader()
    expected = [*straight, *straight]
    first = module(*ready, num_workers=workers).train_dataloader()
    taken = list(first)
    stream = iter(first)
    taken += [next(stream) for _ in range(2)]
    state = first.state_dict()
    second = module(*ready, num_workers=workers).train_dataloader()
    second.load_state_dict(state)
    taken += list(second)
    assert len(taken) == len(expected) == 12
    assert all(same(*pair) for pair in zip(taken, expected, strict=True))


def test_resume_survives_weights_only_loading(ready: tuple[Path, Path], tmp_path: Path) -> None:
    loader = module(*ready).train_dataloader()
    stream = iter(loader)
    next(stream)
    torch.save(loader.state_dict(), tmp_path / "state")
    rest = list(stream)
    again = module(*ready).train_dataloader()
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert all(same(*pair) for pair in zip(rest, again, strict=True))


def test_workers_change_nothing(ready: tuple[Path, Path]) -> None:
    alone, helped = (module(*ready, num_workers=workers) for workers in (0, 2))
    for split in ("train", "val", "test"):
        one, two = (getattr(data, f"{split}_dataloader")() for data in (alone, helped))
        assert all(same(*pair) for pair in zip(one, two, strict=True))


def test_evaluation_counts_each_body_token_of_each_piece_once(ready: tuple[Path, Path]) -> None:
    data = module(*ready, max_eval_len=256)
    counted = np.zeros(len(data.manifest("val")), int)
    for batch in data.val_dataloader():
        np.add.at(counted, batch["piece"][batch["targets"] >= 0].numpy(), 1)
    lengths = np.zeros_like(counted)
    table = data.view("val").table
    lengths[table["row"]] = table["length"]
    assert counted.tolist() == lengths.tolist()


class Counting(SatbGrid):
    """Counts how many pieces it encodes."""

    calls = 0

    def encode(self, score: Any) -> np.ndarray:
        Counting.calls += 1
        return super().encode(score)


def encodes(root: Path, cache: Path) -> tuple[int, MusicDataModule]:
    Counting.calls = 0
    data = module(root, cache, tokenizer=Counting)
    data.prepare()
    return Counting.calls, data


def test_only_changed_files_are_tokenised_again(tmp_path: Path) -> None:
    root, cache = write_folder(tmp_path / "scores", pieces=8), tmp_path / "cache"
    assert encodes(root, cache)[0] == 8
    assert encodes(root, cache)[0] == 0
    quartet(100).dump_midi(root / "folk" / "new.mid")
    quartet(101).dump_midi(root / "folk" / "piece000.mid")
    (root / "jazz" / "piece001.mid").rename(root / "folk" / "moved.mid")
    (root / "jazz" / "piece003.mid").unlink()
    calls, data = encodes(root, cache)
    assert calls == 2
    assert len(data.manifest()) == 8
    names = set(data.manifest()["file"].to_pylist())
    assert {"folk/new.mid", "folk/moved.mid"} <= names
    assert "jazz/piece003.mid" not in names
    assert data.score("train", 0) is not None


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=20)
    for number in range(20):
        original = quartet(number, steps=64 + 16 * (number % 5))
        original.shift_pitch(number % 5 + 1).dump_midi(root / f"copy{number:03d}.mid")
    table = module(root, tmp_path / "cache").manifest().to_pylist()
    split = {row["file"].split("/")[-1]: row["split"] for row in table}
    assert all(split[f"copy{n:03d}.mid"] == split[f"piece{n:03d}.mid"] for n in range(20))
    assert set(split.values()) == {"train", "val", "test"}


def test_bad_files_are_quarantined_and_good_ones_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "scores", pieces=9)
    for name in ("crash", "exit", "memory"):
        quartet(len(name) + 50).dump_midi(root / f"{name}.mid")
    (root / "broken.mid").write_bytes(b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\x20gar")
    (root / "empty.mid").write_bytes(b"")
    data = module(root, tmp_path / "cache", corpus=Troubled(root=str(root)))
    data.prepare()
    assert len(data.manifest()) == 9
    reasons = {file: reason for file, _, reason in data.quarantine}
    assert set(reasons) == {"crash.mid", "exit.mid", "memory.mid", "broken.mid", "empty.mid"}
    assert "crashed" in reasons["crash.mid"]
    assert "5 pieces or files are left out" in capfd.readouterr().err


def test_a_split_that_is_one_large_piece_is_told(tmp_path: Path) -> None:
    def table(split: list[str], notes: list[int]) -> pa.Table:
        return pa.table({"split": split, "notes": notes, "file": [f"{n}.mid" for n in range(len(split))]})

    ratios = {"train": 0.8, "val": 0.1, "test": 0.1}
    [line] = lopsided_splits(table(["train"] * 8 + ["val", "test"], [100] * 9 + [300_000]), ratios)
    assert line.startswith("the test split holds 100% of all notes where data.split asks for 10%: 9.mid alone has 300000")
    assert "cut this file into pieces" in line
    assert lopsided_splits(table(["train"] * 8 + ["val", "test"], [100] * 10), ratios) == []


def test_a_crash_is_no_verdict_the_next_run_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "scores", pieces=9)
    quartet(50).dump_midi(root / "crash.mid")
    bad = module(root, tmp_path / "cache", corpus=Troubled(root=str(root)))
    bad.prepare()
    again = module(root, tmp_path / "cache", corpus=Troubled(root=str(root)))
    again.prepare()
    assert again.folder == bad.folder and len(again.manifest()) == 9  # the same run, or another rank of it
    monkeypatch.setattr("etude.data.scores.manifest.STARTED", time.time() + 60)  # a later run
    monkeypatch.setenv("ETUDE_TEST_SPARED", "1")  # in which the parser is not killed
    later = module(root, tmp_path / "cache", corpus=Troubled(root=str(root)))
    later.prepare()
    assert len(later.manifest()) == 10 and later.quarantine == [] and later.folder != bad.folder
    assert bad.state_dict() != later.state_dict()  # a run can't be resumed on the other data unnoticed


def test_a_renamed_file_is_read_by_its_new_name(tmp_path: Path) -> None:
    root = tmp_path / "scores"
    root.mkdir()
    quartet(1).dump_midi(root / "good.mid")
    quartet(2).dump_midi(root / "two.mid")
    (root / "one.mid").write_text("X:1\nT:A\nM:4/4\nL:1/4\nK:G\nG A B c|\n")
    options: dict[str, Any] = {"tokenizer": MidiTokTokenizer}
    first = module(root, tmp_path / "cache", **options)
    first.prepare()
    [(file, piece, reason)] = first.quarantine
    assert (file, piece) == ("one.mid", "") and "MThd" in reason and str(tmp_path) not in reason
    (root / "one.mid").rename(root / "one.abc")  # as the message asks
    (root / "good.mid").rename(root / "better.midi")
    second = module(root, tmp_path / "cache", **options)
    second.prepare()
    assert second.quarantine == [] and set(second.manifest()["name"].to_pylist()) == {"better", "two", "one"}
    (root / "two.mid").rename(root / "two.abc")  # and not from the cache as it was before
    third = module(root, tmp_path / "cache", **options)
    third.prepare()
    assert [file for file, *_ in third.quarantine] == ["two.abc"]


def test_equal_damaged_files_are_told_each_by_its_own_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=5)
    for name in ("a.mid", "b.mid", "c.abc"):
        (root / name).write_bytes(b" ")
    data = module(root, tmp_path / "cache")
    data.prepare()
    assert sorted(data.quarantine) == [
        (name, "", "the file is empty; copy or export it again") for name in ("a.mid", "b.mid", "c.abc")
    ]


def test_pieces_that_the_tokenizer_cannot_hold_are_quarantined(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=5)
    trio = quartet(77)
    trio.tracks.pop()
    trio.dump_midi(root / "trio.mid")
    data = module(root, tmp_path / "cache")
    data.prepare()
    assert [(file, name) for file, name, _ in data.quarantine] == [("trio.mid", "trio")]
    assert "four" in data.quarantine[0][2]
    assert sum(len(data.view(split)) for split in ("train", "val", "test")) == 5


def test_nothing_readable_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.mid").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="none of 1 files could be read") as caught:
        module(tmp_path / "scores", tmp_path / "cache").prepare()
    assert "\n" not in str(caught.value)


def test_a_full_disk_names_the_path_and_keeps_the_rest(ready: tuple[Path, Path], tmp_path: Path) -> None:
    root, cache = ready
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    before = sorted(path.relative_to(copy) for path in copy.rglob("*"))
    data = module(root, copy, controls=["genre"])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="disk is full") as caught:
            data.prepare()
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == before


def test_a_full_disk_while_parsing_leaves_scores_and_facts_in_step(tmp_path: Path) -> None:
    from etude.data.cache.store import Store, Writer

    root = write_folder(tmp_path / "scores", pieces=8)
    commit, calls = Writer.commit, []

    def fail_at_fourth(self: Writer) -> None:
        calls.append(self.path.name)
        if len(calls) == 4:
            self._discard(OSError(errno.ENOSPC, "No space left on device"))
        commit(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "commit", fail_at_fourth)
        patch.setattr("etude.data.cache.fill.FLUSH_SECONDS", 0.0)
        with pytest.raises(OSError, match="disk is full"):
            module(root, tmp_path / "cache").prepare()
    (parsed,) = (tmp_path / "cache").glob("scores-*")
    assert len(Store(parsed / "facts")) == 1
    data = module(root, tmp_path / "cache")
    assert len(data.manifest()) == 8
    assert all(data.score("train", i) is not None for i in range(len(data.manifest("train"))))


BUILD = """
import sys
from pathlib import Path
from etude.data.cache import fill
from etude.data.cache.lock import held
from etude.data.scores.manifest import ManifestPlan
from tests.data.scores.pieces import Troubled
if __name__ == "__main__":
    fill.FLUSH_SECONDS = 0.1
    corpus, cache = Troubled(root=sys.argv[1]), Path(sys.argv[2])
    with held(cache):
        ratios = {"train": 0.8, "val": 0.1, "test": 0.1}
        plan = ManifestPlan(corpus, corpus.files(), cache_dir=cache, ratios=ratios, complexity=False)
        plan.build(num_workers=1)
"""


def _listen() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits deafness to Ctrl-C


def start_build(tmp_path: Path, root: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(BUILD)
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(tmp_path / "cache")],
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": path}, preexec_fn=_listen,
    )  # fmt: skip


def facts(tmp_path: Path) -> int:
    from etude.data.cache.store import Store

    heads = list((tmp_path / "cache").glob("scores-*/facts/head.json"))
    return len(Store(heads[0].parent)) if heads else 0


def slow_folder(tmp_path: Path) -> Path:
    root = tmp_path / "scores"
    root.mkdir()
    for number in range(24):
        quartet(number).dump_midi(root / f"slow{number:02d}.mid")
    return root


def wait_for_parsing(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while facts(tmp_path) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert facts(tmp_path) >= 2, "nothing was parsed"


def test_ctrl_c_keeps_what_is_parsed_and_says_so(tmp_path: Path) -> None:
    root = slow_folder(tmp_path)
    process = start_build(tmp_path, root)
    wait_for_parsing(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the parent and its workers
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = [line for line in err.splitlines() if line.startswith("interrupted")]
    assert "saved in" in line
    kept = facts(tmp_path)
    assert 2 <= kept < 24
    assert f"{kept} of 24 files" in line


def test_kill_leaves_a_cache_that_goes_on(tmp_path: Path) -> None:
    root = slow_folder(tmp_path)
    process = start_build(tmp_path, root)
    wait_for_parsing(tmp_path, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    data = module(root, tmp_path / "cache", corpus=Folder(root=str(root)))
    data.prepare()
    assert len(data.manifest()) == 24


def test_two_processes_build_one_cache(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "scores", pieces=6)
    both = [start_build(tmp_path, root) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert facts(tmp_path) == 6


def test_another_tokenizer_needs_no_parsing(ready: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etude.data.scores.build.fill", None)
    data = module(*ready, tokenizer=MidiTokTokenizer, velocity_shift=1, tempo_scale=[0.9, 1.1])
    batch = next(iter(data.train_dataloader()))
    assert (batch["targets"] >= 0).any()


def test_byte_pairs_are_learnt_once_and_resume_exactly(ready: tuple[Path, Path]) -> None:
    make = functools.partial(MidiTokTokenizer, bpe_vocab_size=1000)
    data, again = (module(*ready, tokenizer=make) for _ in range(2))
    assert len(data.tokenizer) > data.tokenizer.base_size
    assert data.tokenizer.fingerprint == again.tokenizer.fingerprint
    assert all(same(*pair) for pair in zip(data.train_dataloader(), again.train_dataloader(), strict=True))
    counted = sum(int((batch["targets"] >= 0).sum()) for batch in data.val_dataloader())
    view = data.view("val")
    assert counted == sum(len(data.tokenizer.compress(np.array(view.body(i)))) for i in range(len(view)))


def test_complexity_columns_are_there_on_request(ready: tuple[Path, Path]) -> None:
    names = module(*ready, complexity=True).manifest().column_names
    for group in ("rhythmic", "harmonic", "melodic", "structural"):
        assert any(name.startswith(f"complexity_{group}") for name in names)


def test_resuming_on_other_data_is_refused(ready: tuple[Path, Path]) -> None:
    data = module(*ready)
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint was trained on dataset"):
        data.load_state_dict({**state, "dataset": "folder-other"})


@pytest.mark.parametrize(("options", "says"), [
    ({"split": [0.5, 0.5, 0.5]}, "split="),
    ({"transpose": [4, -4]}, "transpose="),
    ({"tempo_scale": [0.0, 1.0]}, "tempo_scale="),
    ({"control_dropout": 1.5}, "control_dropout="),
    ({"batch_size": 0}, "batch_size="),
    ({"controls": ["mood"]}, "mood"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        module(tmp_path, tmp_path, **options)
