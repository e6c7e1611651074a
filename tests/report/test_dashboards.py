"""W&B without a network is told within seconds, and a curve goes on in its file."""

import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger

from etude.report.dashboards import continue_curves, one_run, wandb_offline, why_unreachable


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers that there is nothing, which is an answer."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_server_that_answers_is_reached() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert why_unreachable(f"http://127.0.0.1:{server.server_port}", seconds=20) is None
        thread.join()


def test_a_server_that_is_silent_or_absent_is_told_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert "timed out" in (why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5) or "")
        assert time.monotonic() - start < 10
        port = silent.getsockname()[1]
    assert "refused" in (why_unreachable(f"http://127.0.0.1:{port}", seconds=5) or "")


def test_with_a_key_and_no_network_a_run_logs_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert wandb_offline()  # no key
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_offline()
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9 can't be reached" in line and "offline" in line
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not wandb_offline()


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists:UserWarning")
def test_a_curve_goes_on_behind_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("loss,step,val\n3,0,\n2,1,\n,1,9\n1,2,\n1,x,\n0,3")  # the last line was cut by a kill
    logger = CSVLogger(str(tmp_path), name="", version="")
    continue_curves([logger], step=2)
    logger.log_metrics({"loss": 5.0}, step=2)
    logger.save()
    assert path.read_text().split() == ["loss,step,val", "3,0,", "2,1,", ",1,9", "5.0,2,"]
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["metrics.csv"]


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists:UserWarning")
@pytest.mark.parametrize("due", [False, True])
def test_a_validation_that_is_made_again_is_logged_once(tmp_path: Path, due: bool) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("loss,step,val/nll\n3,0,\n,0,8\n2,1,\n,1,9\n1,2,\n")
    continue_curves([CSVLogger(str(tmp_path), name="", version="")], step=2, validation_due=due)
    assert path.read_text().split() == ["loss,step,val/nll", "3,0,", ",0,8", "2,1,", *([] if due else [",1,9"])]


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_a_run_that_goes_on_keeps_its_id_at_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.loggers import WandbLogger

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for part in range(2):
        known = one_run("pytorch_lightning.loggers.WandbLogger", tmp_path / "run", step=4 * part or None)
        logger = WandbLogger(project="p", save_dir=tmp_path / "run", offline=True, **known)
        logger.log_metrics({"loss": 1.0}, step=4 * part)
        assert logger.experiment.id == known["id"] == (tmp_path / "run" / "wandb_id.txt").read_text().strip()
        logger.experiment.finish()
        time.sleep(1.1)  # W&B names its folders by the second
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and {file.stem for file in files} == {f"run-{known['id']}"}
    assert one_run("pytorch_lightning.loggers.WandbLogger", tmp_path / "another", step=4)["id"] != known["id"]


@pytest.mark.parametrize(
    ("again", "expected"),
    [(2, [(0, 1.0), (1, 2.0), (2, 30.0), (3, 40.0)]), (None, [(2, 30.0), (3, 40.0)])],
    ids=["from a checkpoint", "before the first checkpoint"],
)
def test_tensorboard_shows_a_run_that_goes_on_as_one_curve(
    tmp_path: Path, again: int | None, expected: list[tuple[int, float]]
) -> None:
    pytest.importorskip("tensorboard")
    from pytorch_lightning.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step, values in ((None, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}), (again, {2: 30.0, 3: 40.0})):
        options = one_run("pytorch_lightning.loggers.TensorBoardLogger", tmp_path, step=step)
        logger = TensorBoardLogger(str(tmp_path), name="tensorboard", version="", **options)
        for place, value in values.items():
            logger.log_metrics({"loss": value}, step=place)
        logger.finalize("success")
        time.sleep(1.1)  # TensorBoard reads files in the order of their seconds
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == expected
