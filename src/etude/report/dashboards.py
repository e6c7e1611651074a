"""What loggers need beyond Lightning: a curve that goes on in its file, and W&B without a network."""

import csv
import functools
import io
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from etude.report.files import write_atomically

SECONDS = 5.0  # to wait for W&B's server


@rank_zero_only
def continue_curves(loggers: Sequence[Any], *, step: int) -> None:
    """Lets each metrics.csv go on behind a run's first `step` steps: what was logged after its checkpoint is logged anew."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            _continue(logger, step)


def _continue(logger: CSVLogger, step: int) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    aside = path.with_name("metrics.csv.earlier")  # Lightning deletes a file that it finds
    if path.is_file() and not aside.is_file():
        path.rename(aside)
    if not aside.is_file():
        return
    with aside.open(newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        rows = [row for row in reader if (row.get("step") or "").isdecimal() and int(row["step"]) < step]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    experiment: Any = logger.experiment
    experiment.metrics_keys = names
    write_atomically(path, text.getvalue())
    aside.unlink()


def wandb_offline() -> bool:
    """Whether W&B logs to files alone: without a key, or where its server doesn't answer, which is told in one line."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun"):
        return True
    netrc = Path.home() / ".netrc"
    if "WANDB_API_KEY" not in os.environ and not (netrc.is_file() and "wandb" in netrc.read_text(errors="replace")):
        return True
    if os.environ.get("WANDB_MODE") == "disabled":
        return False
    import wandb

    url = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    reason = unreachable(url)
    if reason is not None:
        print(
            f"W&B: {url} can't be reached ({reason}); this run logs offline, `wandb sync` with its folder sends it later",
            file=sys.stderr,
        )
    return reason is not None


def unreachable(url: str, *, seconds: float = SECONDS) -> str | None:
    """Why no server answers at `url` within `seconds`, through the proxy if there is one; None where one does."""
    found: list[str | None] = []
    thread = threading.Thread(target=functools.partial(_try, url, seconds, found), daemon=True)  # looking a name up may hang
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
