"""The data module and its files: what is read again, bad and equal files, full disks, interruptions."""

import errno
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

from etude.data.scores import build
from etude.data.scores.corpora import Folder
from etude.data.scores.manifest import lopsided_splits
from etude.data.scores.module import MusicDataModule
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.data.scores.pieces import module, quartet, write_folder
from tests.data.scores.troubled import Troubled


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
    with pytest.raises(ValueError, match="none of 1 file could be read") as caught:
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
from tests.data.scores.troubled import Troubled
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
    if not script.exists():  # another process may be reading it
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


READ_HASHES = """
import sys
from pathlib import Path
from etude.data.scores import build
from etude.data.scores.corpora import Folder
build.hash_files(Folder(root=sys.argv[1]).files(), Path(sys.argv[2]))
print(*(path.read_text() for path in Path("/proc/self/task").glob("*/comm")), sep="")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to list threads")
def test_hashes_are_read_without_threads(tmp_path: Path) -> None:
    """A thread of pyarrow that freed the bytes of the table while the program ended aborted it, exit code 134."""
    root, cache = write_folder(tmp_path / "scores", pieces=2), tmp_path / "cache"
    cache.mkdir()
    build.hash_files(Folder(root=str(root)).files(), cache)
    assert (cache / "hashes.sealed").exists()
    call = [sys.executable, "-c", READ_HASHES, str(root), str(cache)]
    names = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
    assert len([name for name in names if name.startswith("python")]) == 1, names
