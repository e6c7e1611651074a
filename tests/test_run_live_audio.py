"""`transfer.py live=true` as a user pipes it: what goes in comes out, with its header, and Ctrl-C ends it cleanly."""

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.test_run import ROOT, call, fails
from tests.test_run_audio import here, many, write_genres


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of one small run."""
    home = tmp_path_factory.mktemp("home")
    write_genres(home / "genres", ("folk", "jazz"))
    call("train", home / "outputs" / "one", *here(home, sampling=False))
    return home


def live(home: Path, *options: str, **how: Any) -> subprocess.Popen[bytes]:
    run = [f"ckpt={home / 'outputs' / 'one'}", f"hydra.run.dir={home / 'live'}", "live=true", "in=-", "out=-", "style=jazz"]
    return subprocess.Popen(
        [sys.executable, "transfer.py", *run, *options],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
    )  # fmt: skip


def test_a_wav_stream_comes_out_as_one(home: Path) -> None:
    song, file = many(9, rate=22_050, channels=2), io.BytesIO()
    soundfile.write(file, song, 22_050, subtype="PCM_16", format="WAV")
    out, told = live(home, "live_block=8").communicate(file.getvalue(), timeout=300)
    assert out[:4] == b"RIFF" and out[8:16] == b"WAVEfmt " and out[36:44] == b"data\xff\xff\xff\xff"
    found, rate = soundfile.read(io.BytesIO(out), always_2d=True)
    assert (rate, found.shape) == (22_050, song.shape)
    assert np.abs(found - song).max() > 0.01
    text = told.decode()
    assert "restyling in=- to out=-, 2 channels at 22050 Hz" in text
    assert "latency 2" in text and "(block 128, look-ahead 64" in text
    assert "ended: " in text and "times real time" in text and "Traceback" not in text
    assert not (home / "live").exists()  # nothing is written there


def test_raw_pcm_comes_out_as_such_and_ctrl_c_ends_it(home: Path) -> None:
    raw = (many(3, rate=16_000, channels=1) * 32_767).astype("<i2").tobytes()

    def listen() -> None:  # as in a shell's foreground
        signal.signal(signal.SIGINT, signal.default_int_handler)

    running = live(home, "live_rate=16000", "live_channels=1", "source=folk", preexec_fn=listen)
    assert running.stdin is not None and running.stdout is not None and running.stderr is not None
    feed, heard = running.stdin, running.stdout
    writer = threading.Thread(target=lambda: (feed.write(raw), feed.flush()))
    writer.start()
    first = os.read(heard.fileno(), 65_536)  # before the input has ended
    assert first and len(first) % 2 == 0
    writer.join(60)
    running.send_signal(signal.SIGINT)
    rest, told = running.stdout.read(), running.stderr.read().decode()
    for pipe in (feed, heard, running.stderr):
        pipe.close()
    assert running.wait(60) == 0 and "ended: " in told and "Traceback" not in told
    assert 0 < len(first) + len(rest) <= len(raw)


def test_live_options_without_live_are_refused(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    usual = [f"ckpt={home / 'outputs' / 'one'}", "in=song.wav", "style=jazz"]
    line = fails(capsys, "transfer", tmp_path / "run", *usual, "live_ahead=4")
    assert "live_ahead=4 does nothing without live=true" in line
    line = fails(capsys, "transfer", tmp_path / "run", *usual, "live=true")
    assert "in=song.wav is a file; with live=true give in=-" in line
    line = fails(capsys, "transfer", tmp_path / "run", *usual, "live=maybe")
    assert "live is 'maybe', must be true or false" in line
