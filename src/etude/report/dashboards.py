"""Additions to Lightning's loggers: continuing metrics.csv, W&B runs and TensorBoard curves after a resume; W&B offline."""

import csv
import functools
import io
import os
import secrets
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger

from etude.report.files import write_atomically

WANDB_ID = "wandb_id.txt"  # in a run's folder
TIMEOUT_SECONDS = 5.0  # to wait for W&B's server


def one_run(target: str, folder: Path, *, step: int | None) -> dict[str, Any]:
    """What the logger `target` is built with so that a run that goes on in its `folder` stays one run on the dashboard.

    W&B: the id that the run has kept in its folder. TensorBoard: what was logged after the checkpoint is left out; of a run that
    begins again, since it was ended before its first checkpoint, all that was logged.

    step: steps that the run has behind it; None for a new run.
    """
    if target.endswith((".WandbLogger", ".WandbRun")):
        kept = folder / WANDB_ID
        if not kept.is_file():
            write_atomically(kept, f"{secrets.token_hex(4)}\n")
        return {"id": kept.read_text().strip(), "resume": "allow"}
    if target.endswith((".TensorBoardLogger", ".TensorBoardRun")):
        return {"purge_step": step or 0}
    return {}


@rank_zero_only
def continue_curves(loggers: Sequence[Any], *, step: int, validation_due: bool = False) -> None:
    """Continues each metrics.csv after the first `step` steps: rows logged after the checkpoint are removed and logged again.

    validation_due: the validation that follows the last of these steps is made again, too.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            _continue(logger, step, validation_due)


def _continue(logger: CSVLogger, step: int, validation_due: bool) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    aside = path.with_name("metrics.csv.earlier")  # moved away, since Lightning deletes an existing metrics.csv
    if path.is_file() and not aside.is_file():
        path.rename(aside)
    if not aside.is_file():
        return
    with aside.open(newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < step]
    if validation_due:
        validated = [name for name in names if name.startswith("val/")]
        rows = [row for row in rows if int(row["step"]) < step - 1 or not any(row[name] for name in validated)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    experiment: Any = logger.experiment
    experiment.metrics_keys = names
    write_atomically(path, text.getvalue())
    aside.unlink()


def wandb_offline() -> bool:
    """Returns whether W&B should log only to files: there is no key, or its server does not answer (printed in one line)."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return True
    netrc = Path.home() / ".netrc"
    if "WANDB_API_KEY" not in os.environ and not (netrc.is_file() and "wandb" in netrc.read_text(errors="replace")):
        return True
    if os.environ.get("WANDB_MODE") == "disabled":
        return False
    import wandb

    url = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    reason = why_unreachable(url)
    if reason is not None:
        print(
            f"W&B: {url} can't be reached ({reason}); this run logs offline; upload it later with `wandb sync FOLDER`",
            file=sys.stderr,
        )
    return reason is not None


def why_unreachable(url: str, *, seconds: float = TIMEOUT_SECONDS) -> str | None:
    """Returns why no server answers at `url` within `seconds`, through the proxy if there is one; None if one answers."""
    found: list[str | None] = []
    thread = threading.Thread(target=functools.partial(_try, url, seconds, found), daemon=True)  # the name lookup may hang
    thread.start()
    thread.join(seconds + 1)
    return found[0] if found else f"no answer within {seconds:.0f} s"


def _try(url: str, seconds: float, found: list[str | None]) -> None:
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError:  # an answer
        found.append(None)
    except urllib.error.URLError as error:
        found.append(str(error.reason or error))
    except (OSError, ValueError) as error:
        found.append(str(error))
    else:
        found.append(None)


def finish(*, failed: bool) -> None:
    """Ends the W&B run of this process, if there is one, and writes its files to the end."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
