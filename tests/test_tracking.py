"""What a run logs is found again in the files of W&B and TensorBoard; a run's folder is complete without them."""

import csv
import http.server
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from matplotlib.image import imread
from omegaconf import OmegaConf

from etude.report.media import read_table
from etude.report.wandb_run import WandbRun
from etude.run.tracking import build_loggers
from tests.report.records import media, offline_records
from tests.songs import write_songs
from tests.test_run import ROOT, TINY, call, fails

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # W&B's own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all loggers."""
    home = tmp_path_factory.mktemp("tracked")
    write_songs(home / "songs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_API_KEY", raising=False)
        call(
            "train", home / "outputs" / "one", *TINY, f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}",
            "logger=[csv,wandb,tensorboard]", "logger.wandb.group=rates", "logger.wandb.checkpoints=[best,last]",
            "sampling.audio=true", "sampling.num_samples=2", "sampling.key=G major",
        )  # fmt: skip
    assert wandb.run is None
    return home / "outputs" / "one"


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, list[Any]]:
    """What W&B's files of that run hold."""
    return offline_records(run)


def curve(run: Path, name: str) -> dict[int, float]:
    """A curve of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_the_folder_has_a_table_of_samples(run: Path) -> None:
    samples = read_table(run / "samples")
    assert [sample.name for sample in samples] == ["000", "001"]
    for sample in samples:
        assert sample.values["asked key"] == "G major" and "got key" in sample.values and sample.values["got num_bars"] == 1
        assert isinstance(sample.values["polyphony"], float) and sample.values["notes"]
        assert sample.picture and sample.sound and sample.score


def test_wandb_files_hold_curves_options_pictures_sounds_and_the_table(run: Path, found: dict[str, list[Any]]) -> None:
    history = [record["item"] for record in found["history"]]
    for name in ("train/nll", "val/nll"):
        shown = {item["trainer/global_step"]: item[name] for item in history if name in item}
        assert shown == pytest.approx(curve(run, name)), name
    options = {key: value for record in found["config"] for key, value in record["update"].items()}
    recipe: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert options["model"] == recipe["model"] and "logger=[csv,wandb,tensorboard]" in options["overrides"]
    assert options["environment"]["python"].startswith("CPython")
    started = found["run"][0]
    assert (started["run_group"], started["display_name"]) == ("rates", "folder")
    (picture,) = (item for item in history if item.get("samples/000._type") == "images/separated")
    assert imread(media(run, picture["samples/000.filenames"][0])).ndim == 3
    (sound,) = (item["samples/000 sound.audio"][0] for item in history if "samples/000 sound.audio" in item)
    played, rate = soundfile.read(media(run, sound["path"]))
    (sample, _) = read_table(run / "samples")
    assert sample.sound is not None
    assert len(played) / rate == pytest.approx(soundfile.info(sample.sound).duration, abs=0.2)


def test_the_table_at_wandb_has_a_row_for_each_sample(run: Path, found: dict[str, list[Any]]) -> None:
    entries = {entry["path"]: Path(entry["local_path"]) for r in found["artifact"] for entry in r["manifest"]["contents"]}
    table = json.loads(entries["samples/table.table.json"].read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["sample"] for row in rows] == ["000", "001"]
    for row, sample in zip(rows, read_table(run / "samples"), strict=True):
        assert row["asked key"] == "G major" and row["polyphony"] == sample.values["polyphony"]
        assert row["picture"]["_type"] == "image-file" and row["sound"]["_type"] == "audio-file"
        assert entries[row["picture"]["path"]].read_bytes().startswith(b"\x89PNG")
        assert soundfile.info(entries[row["sound"]["path"]]).duration > 1
    assert all(path.is_relative_to(run) for path in entries.values())  # nothing outside the run's folder is needed


def test_wandb_keeps_the_checkpoints_that_were_asked_for(run: Path, found: dict[str, list[Any]]) -> None:
    models = [record for record in found["artifact"] if record["type"] == "model"]
    kept = {alias: record["manifest"]["contents"][0] for record in models for alias in record["aliases"]}
    for name in ("best", "last"):
        assert kept[name]["path"] == f"{name}.ckpt"
        assert int(kept[name]["size"]) == (run / "checkpoints" / f"{name}.ckpt").stat().st_size
    values = {key: value for record in found["summary"] for key, value in record["update"].items()}
    assert values["best/val/nll"] == pytest.approx(min(curve(run, "val/nll").values()))
    assert found["exit"][0].get("exit_code", 0) == 0


def test_tensorboard_files_hold_curves_options_pictures_sounds_and_the_table(run: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("train/nll", "val/nll"):
        assert {event.step: event.value for event in board.Scalars(name)} == pytest.approx(curve(run, name))
    assert board.Scalars("best/val/nll")[0].value == pytest.approx(min(curve(run, "val/nll").values()))
    assert board.Images("samples/000")[0].width > 100 and board.Audio("samples/001")[0].sample_rate == 44_100
    assert "samples/table/text_summary" in board.Tags()["tensors"]
    table = board.Tensors("samples/table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| asked key |" in table and table.count("\n") == 3
    from tensorboard.plugins.hparams import plugin_data_pb2

    session = plugin_data_pb2.HParamsPluginData.FromString(
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info
    assert session.hparams["model.dim"].number_value == 32 and session.hparams["name"].string_value == "folder"


@pytest.mark.parametrize(
    ("options", "mode", "expected"),
    [
        ([], "RUN", (None, "chorales", [])),
        (["trial={study:rates,number:7,storage:x}"], "RUN", ("rates", "7", ["sweep", "rates"])),
        (["trial={study:rates,number:7,storage:x}", "logger.wandb.group=mine"], "RUN", ("mine", "chorales", [])),
        (["logger.wandb.tags=[a]"], "MULTIRUN", ("noon_sweep", "chorales 3", ["a", "sweep"])),
    ],
)
def test_runs_of_a_sweep_are_a_group_at_wandb(options: list[str], mode: str, expected: tuple[Any, ...], tmp_path: Path) -> None:
    settings = [
        f"hydra.mode={mode}",
        "hydra.sweep.dir=outputs/noon_sweep",
        "hydra.job.num=3",
        f"hydra.runtime.output_dir={tmp_path}",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["logger=wandb", *options, *settings], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        (logger,) = build_loggers(cfg, tmp_path, step=None)
    asked = logger._wandb_init  # W&B's run itself is not started
    assert (asked["group"], asked["name"], asked["tags"]) == expected


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = fails(capsys, "train", tmp_path / "run", *TINY, f"data.root={tmp_path}", "logger=[csv,tensorboard]")
    assert line == "error: logger=tensorboard needs a package that is not installed; pip install 'etude[tensorboard]'"


class NoEntry(http.server.BaseHTTPRequestHandler):
    """A W&B server that knows no key."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_key_that_wandb_refuses_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoEntry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_MODE", "online")
        logger = WandbRun(project="p", name="n", save_dir=str(tmp_path), offline=False, id="abcd", resume="allow")
        wandb.teardown()  # an earlier test may have set it offline for the whole process
        since = time.monotonic()
        logger.log_metrics({"loss": 1.5}, step=3)
        wandb.finish()
        server.shutdown()
    assert time.monotonic() - since < 60
    assert "W&B refuses this run" in capsys.readouterr().err
    (item,) = (record["item"] for record in offline_records(tmp_path)["history"])
    assert item["loss"] == 1.5 and item["trainer/global_step"] == 3


def test_an_unknown_checkpoint_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger\.wandb\.checkpoints has \['all'\]; it may hold best and last"):
        WandbRun(project="p", name="n", save_dir=str(tmp_path), offline=True, id=None, resume=None, checkpoints=["all"])  # type: ignore[list-item]
