"""The program compare: puts runs side by side in a page, a table on the terminal, and compare.csv."""

import shutil
import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from etude.run.command import one_line_errors
from etude.run.folder import run_folder


@one_line_errors
def compare(cfg: DictConfig) -> None:
    """Compares runs: writes compare.html and compare.csv, and prints a table."""
    from etude.report.comparison.page import write_page
    from etude.report.comparison.runs import find_runs, labels, read_run
    from etude.report.comparison.tables import as_csv, as_text
    from etude.report.files import write_atomically

    if cfg.num_samples < 0 or not cfg.seconds > 0:
        raise ValueError(f"num_samples is {cfg.num_samples}, must be at least 0, and seconds={cfg.seconds} above 0")
    names = list(cfg.runs) if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    folders = find_runs([str(name) for name in names if name is not None], Path(cfg.outputs))
    runs = [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    folder = run_folder()
    write_atomically(folder / "compare.csv", as_csv(runs))
    page = write_page(folder / "compare.html", runs, num_samples=cfg.num_samples, seconds=cfg.seconds)
    print(as_text(runs, width=max(shutil.get_terminal_size().columns, 100)))
    print(f"results: {page}", file=sys.stderr)
