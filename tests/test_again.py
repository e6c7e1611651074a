"""A command that is started again goes on where it stopped; a run is repeated from its folder; what a run has read is kept."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from etude.run import again
from etude.run.export import export
from etude.run.heads import set_targets
from etude.run.inputs import compare_inputs
from etude.run.repro import told as strict_error
from etude.run.reproduce import _check_options, _compare, hashes, reproduce, stopped_in_validation
from tests import test_run
from tests.songs import song
from tests.test_run import ROOT, TINY, call, fails
from tests.test_run_folder import chosen

home = test_run.home  # the fixture
QUICK = [option for option in TINY if not option.startswith("sampling.")] + ["~sampling"]


def options(home: Path) -> list[str]:
    return [*QUICK, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}"]


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same_weights(one: Path, two: Path) -> bool:
    mine, theirs = state(one)["state_dict"], state(two)["state_dict"]
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- autoresume ---


def test_the_same_options_find_the_same_folder_and_others_another(tmp_path: Path) -> None:
    base = [f"outputs={tmp_path}", "autoresume=true", "model=tiny"]
    one = chosen(*base)
    assert one == chosen(*base) == chosen(*base, "stop_at=3", "cache_dir=elsewhere") and one.parent == tmp_path / "auto"
    assert one.name.startswith("chorales-") and chosen(*base, "name=mine/1").name.startswith("mine_1-")
    others = {chosen(*base, option) for option in ("seed=1", "model.dim=64", "optimizer=adamw", "max_steps=9", "save_every=7")}
    assert len(others | {one}) == 6
    assert chosen(f"outputs={tmp_path}", "model=tiny").parent != one.parent


def folder_of_jobs(*options: str) -> Path:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["outputs=here", "autoresume=true"], return_hydra_config=True)
    cfg.hydra.overrides.task = list(options)
    return again.stable_folder(cfg, sweep=True)


def test_a_multirun_finds_its_folder_only_if_its_runs_have_the_same_numbers() -> None:
    one = folder_of_jobs("seed=3,4", "max_steps=1,2", "data=folk", "model=tiny", "outputs=here", "cache_dir=a")
    assert one == folder_of_jobs("model=tiny", "cache_dir=b", "seed=3,4", "data=folk", "max_steps=1,2")
    assert one != folder_of_jobs("max_steps=1,2", "seed=3,4", "data=folk", "model=tiny")  # job 1 is another run


def test_a_run_of_a_multirun_is_not_taken_for_another(tmp_path: Path) -> None:
    again.keep_options(tmp_path, ["seed=3", "max_steps=2", "outputs=here"], found_again=True)
    again.keep_options(tmp_path, ["seed=4", "max_steps=2"], found_again=True)  # nothing has begun
    again.mark_finished(tmp_path, step=2, value=None)
    again.keep_options(tmp_path, ["max_steps=2", "seed=4", "cache_dir=elsewhere"], found_again=True)
    path = tmp_path / again.OPTIONS
    assert json.loads(path.read_text()) == ["max_steps=2", "seed=4"]
    with pytest.raises(
        ValueError, match="holds the run of max_steps=2 seed=4, not of seed=3 max_steps=2; give the options of -m"
    ):
        again.keep_options(tmp_path, ["seed=3", "max_steps=2"], found_again=True)


def test_a_stopped_run_goes_on_and_a_finished_one_is_not_repeated(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "auto"
    value = call("train", whole, *options(home))
    mine = [*options(home), "autoresume=true"]
    with pytest.raises(SystemExit) as end:
        call("train", folder, *mine, "stop_at=3")
    assert end.value.code == 130 and state(folder)["global_step"] == 3 and again.finished(folder) is None
    line = fails(capsys, "train", folder, *mine, "ckpt=last")
    assert "autoresume=true finds its run by itself; leave ckpt=last out" in line
    assert call("train", folder, *mine) == value and same_weights(whole, folder)
    assert (whole / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()
    assert not list(folder.glob("config_*.yaml"))
    before = (folder / "checkpoints" / "last.ckpt").stat()
    capsys.readouterr()
    assert call("train", folder, *mine) == value
    assert f"{folder}: this run finished at step 10; another option begins a new one" in capsys.readouterr().err
    assert (folder / "checkpoints" / "last.ckpt").stat() == before
    (folder / again.FINISHED).write_text("{")
    assert "finished.json can't be read" in fails(capsys, "train", folder, *mine)
    # the end that is written down is that of a longer run
    call("train", folder, f"ckpt={folder}", "trainer.max_steps=12", *options(home)[-2:])
    assert json.loads((folder / again.FINISHED).read_text())["step"] == 12


def test_phases_go_on_with_the_one_that_was_stopped(home: Path, tmp_path: Path) -> None:
    phases = "+stage={name:two,phases:[{name:a,options:['seed=1']},{name:b,options:['seed=2']}]}"
    mine = [*options(home), phases, "autoresume=true"]
    call("train", tmp_path / "whole", *mine)
    done = tmp_path / "auto" / "1_a"
    shutil.copytree(tmp_path / "whole" / "1_a", done)
    stamp = (done / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    call("train", tmp_path / "auto", *mine)
    assert (done / "checkpoints" / "last.ckpt").stat().st_mtime_ns == stamp
    assert same_weights(tmp_path / "whole" / "2_b", tmp_path / "auto" / "2_b")


def test_a_job_of_slurm_is_started_again_after_its_warning(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a program in the place of scontrol, since there is no Slurm here; what Slurm then does is not tried."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$2" != 99 ] || {{ echo "Invalid job id" >&2; exit 1; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert again._requeued(signal.SIGUSR1) is None  # not under Slurm
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert again._requeued(signal.SIGTERM) is None and again._requeued(signal.SIGINT) is None
    assert "Slurm starts job 17 again" in str(again._requeued(signal.SIGUSR1))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "16")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert "job 16_3" in str(again._requeued(signal.SIGUSR1))
    assert (tmp_path / "asked").read_text() == "requeue 17\nrequeue 16_3\n"
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert (
        again._requeued(signal.SIGUSR1)
        == "scontrol requeue 99 failed (Invalid job id); submit the same job again, and it goes on"
    )
    program.unlink()
    monkeypatch.setenv("PATH", str(program.parent))
    assert "scontrol requeue 99 failed" in str(again._requeued(signal.SIGUSR1))


# --- weights ---


def test_exported_weights_are_used_like_a_checkpoint(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, file = home / "outputs" / "one", tmp_path / "w.safetensors"
    cfg = OmegaConf.create(
        {"ckpt": str(one), "file": str(file), "outputs": "outputs", "overwrite": False, "adapter": False, "base": None}
    )
    export(cfg)
    assert f"{one / 'checkpoints' / 'best.ckpt'}: {file} (" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(cfg)
    assert "exists; give another name, or overwrite=true" in capsys.readouterr().err
    wishes = ["num_samples=1", "num_bars=1", "audio=false", "max_new_tokens=100"]
    for name, ckpt in (("a", one), ("b", file)):
        call("generate", tmp_path / name, f"ckpt={ckpt}", *wishes)
    assert (tmp_path / "a/samples/000.mid").read_bytes() == (tmp_path / "b/samples/000.mid").read_bytes()
    starts = [tmp_path / "from_best", tmp_path / "from_file"]
    for folder, weights in zip(starts, (one / "checkpoints" / "best.ckpt", file), strict=True):
        call("train", folder, *options(home), "max_steps=2", "trainer.max_steps=2", f"weights={weights}")
    assert same_weights(*starts)
    assert f"checkpoint\tweights={file}\t" in (starts[1] / "data.tsv").read_text()
    assert "holds weights only; start a new run" in fails(capsys, "train", tmp_path / "no", f"ckpt={file}")


# --- a run again ---


def refused(run: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `etude reproduce` says when it refuses a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("reproduce", overrides=[f"run={run}"], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(place)
            cfg.hydra.job.config_name = "reproduce"
        HydraConfig.instance().set_config(cfg)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            reproduce(cfg)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_run_is_repeated_bit_for_bit_and_what_has_changed_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = shutil.copytree(home / "songs", tmp_path / "songs")
    one = tmp_path / "outputs" / "one"
    mine = [*QUICK, f"data.root={songs}", f"cache_dir={tmp_path / 'cache'}", "hash_every=2", "trainer.log_every_n_steps=2"]
    call("train", one, *mine, "repro=strict", "threads=1")
    assert "threads=1" in state(one)["etude"]["recipe"]["overrides"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "etude.run.cli", "reproduce", f"run={one}", f"outputs={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bit for bit at step 10: weights, optimizer, loops, techniques and metrics" in done.stdout
    (new,) = tmp_path.glob("*/*_reproduce")
    assert same_weights(one, new) and (one / "hashes.tsv").read_text() == (new / "hashes.tsv").read_text()

    hashes(OmegaConf.create({"runs": [str(one), str(new)]}))
    assert "agree at every step" in capsys.readouterr().out
    rows = (one / "hashes.tsv").read_text().splitlines()
    columns, fields = rows[0].split("\t"), rows[3].split("\t")
    fields[5] = "0"
    (new / "hashes.tsv").write_text("\n".join([*rows[:3], "\t".join(fields), *rows[4:], ""]))
    with pytest.raises(SystemExit) as end:
        hashes(OmegaConf.create({"runs": [str(one), str(new)]}))
    assert end.value.code == 1 and f"step {fields[0]}: {columns[5]} (" in capsys.readouterr().out

    song(99).dump_midi(songs / "folk" / "song02.mid")
    told = refused(one, tmp_path / "no", capsys)
    assert f"error: run={one} can't be repeated: folk/song02.mid of " in told and "has changed (sha256" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: (run / "config.yaml").unlink(), "there is no config.yaml; give the folder of a run"),
        (lambda run: shutil.copy(run / "config.yaml", run / "config_1.yaml"), "was continued with other options"),
        (lambda run: _edit(run, "seed", 5), "seed was 5 in that run and is 0 here: the defaults have changed"),
    ],
    ids=["no config", "continued", "defaults"],
)
def test_what_can_not_be_repeated_is_refused_by_name(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, told: str
) -> None:
    run = shutil.copytree(home / "outputs" / "one", tmp_path / "one")
    change(run)
    assert told in refused(run, tmp_path / "new", capsys)


def _edit(run: Path, key: str, value: Any) -> None:
    cfg = OmegaConf.load(run / "config.yaml")
    cfg[key] = value
    OmegaConf.save(cfg, run / "config.yaml")


def test_a_trial_of_a_sweep_is_no_other_setting(home: Path, tmp_path: Path) -> None:
    """Of a trial only its options are repeated, so it is compared with a run that has no trial."""
    kept = OmegaConf.load(home / "outputs" / "one" / "config.yaml")
    kept.trial = {"study": "a", "storage": "sqlite:///a.db", "number": 3}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("reproduce", return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(cfg)
        made = _check_options([*TINY, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}"], kept)
    assert made.trial is None and made.model.dim == 32


def test_the_heads_of_a_classifier_are_no_other_setting(tmp_path: Path) -> None:
    options = ["task=classifier", "data=folder", "data.root=songs", "heads=[genre,metre]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        kept = compose("train", overrides=options)
        set_targets(kept, options)  # as the run does, which then writes config.yaml
        cfg = compose("reproduce", return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path)
        HydraConfig.instance().set_config(cfg)
        kept = OmegaConf.create({**OmegaConf.to_container(kept, resolve=True), "name": "folder"})
        assert list(_check_options(options, kept).data.targets) == ["genre", "metre"]
        kept.data.targets = ["genre"]
        with pytest.raises(ValueError, match=r"data\.targets was \['genre'\] in that run and is \['genre', 'metre'\] here"):
            _check_options(options, kept)


def test_a_run_that_was_stopped_within_a_validation_is_compared_up_to_it(home: Path, tmp_path: Path) -> None:
    one, new = home / "outputs" / "one", shutil.copytree(home / "outputs" / "one", tmp_path / "new")
    saved, again = state(one), state(new)
    assert not stopped_in_validation(saved) and _compare(one, new, saved, again, tolerance=0.0) == []
    saved["callbacks"]["LastCheckpoint"] = {"random_state": {}}
    saved["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]["ready"] = 0
    rows = (new / "metrics.csv").read_text().splitlines()
    (new / "metrics.csv").write_text("\n".join([*rows, rows[-1]]) + "\n")  # of the validation that the new run has completed
    assert stopped_in_validation(saved) and _compare(one, new, saved, again, tolerance=0.0) == []
    next(iter(again["state_dict"].values())).view(-1)[0] += 1.0
    (line,) = _compare(one, new, saved, again, tolerance=0.0)
    assert line.startswith("checkpoint: state_dict.")


def test_what_a_run_has_read_stands_in_its_folder(home: Path) -> None:
    rows = [line.split("\t") for line in (home / "outputs" / "one" / "data.tsv").read_text().splitlines()]
    files = {file: digest for _, file, digest in rows[1:]}
    assert rows[0] == ["split", "file", "sha256"] and len(files) == 13 and "tokens" in files
    assert files["folk/song00.mid"] == hashlib.sha256((home / "songs" / "folk" / "song00.mid").read_bytes()).hexdigest()


HEAD = "split\tfile\tsha256\n"


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ("train\ta\t1\nval\tb\t2\n", None),
        ("train\ta\t9\nval\tb\t2\n", "a of train has changed (sha256 1..., now 9...)"),
        ("train\ta\t1\n", "b of val is missing"),
        ("train\ta\t1\ntrain\tb\t2\n", "b of val is in train now"),
        ("train\ta\t1\nval\tb\t2\nval\tc\t3\n", "c of val is new"),
    ],
)
def test_the_first_file_that_differs_is_named(now: str, told: str | None) -> None:
    assert compare_inputs(f"{HEAD}train\ta\t1\nval\tb\t2\n", HEAD + now) == told


# --- repro ---


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("repro=exact", "repro=exact: must be fast or strict"),
        ("threads=0", "threads=0: must be a whole number of at least 1"),
        ("stop_at=0", "stop_at is 0, must be at least step 1"),
        ("hash_every=-1", "hash_every is -1"),
        ("keep_last=0", "keep_last is 0"),
    ],
)
def test_bad_values_are_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, told: str) -> None:
    assert told in fails(capsys, "train", tmp_path / "run", *options(home), option)


def test_a_strict_run_refuses_clocks_and_operations_that_differ_each_time(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = fails(capsys, "train", tmp_path / "run", *options(home), "repro=strict", "trainer.max_time='00:00:01:00'")
    assert "trainer.max_time=00:00:01:00 depends on the clock, which repro=strict excludes" in line
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as error:
            torch.ones(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "repro=strict: put_ does not have a deterministic implementation" in str(strict_error(error.value))
    assert strict_error(RuntimeError("out of memory")) is None
