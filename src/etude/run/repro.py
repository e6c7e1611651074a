"""How exactly a run can be repeated: `repro=fast|strict` and `threads`."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

MODES = ("fast", "strict")
NOT_REPEATABLE = "does not have a deterministic implementation"  # in PyTorch's error


def prepare(cfg: DictConfig, overrides: list[str]) -> list[str]:
    """Sets PyTorch up for `cfg.repro` and `cfg.threads`; returns the run's options, in a strict run with its number of threads.

    fast: nothing is changed. On the CPU a run is repeated bit for bit with the same number of threads, since no random number
    depends on time; some CUDA kernels add in an order that changes.

    strict: only kernels that repeat exactly; an operation that has none is refused when it is reached. The number of threads is
    kept in the options, so that a continued run has the same.

    Raises: ValueError for another value, or in a strict run for an option that depends on the clock.
    """
    if cfg.repro not in MODES:
        raise ValueError(f"repro={cfg.repro}: must be {' or '.join(MODES)}")
    if cfg.threads is not None:
        if type(cfg.threads) is not int or cfg.threads < 1:
            raise ValueError(f"threads={cfg.threads}: must be a whole number of at least 1, or null for PyTorch's own choice")
        torch.set_num_threads(cfg.threads)
    strict = cfg.repro == "strict"
    if strict:
        _refuse_clocks(cfg)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by CUDA when it starts
    torch.use_deterministic_algorithms(strict or bool(cfg.trainer.deterministic))
    torch.backends.cudnn.deterministic = strict
    if not strict:
        return overrides
    torch.backends.cudnn.benchmark = False
    with open_dict(cfg):
        cfg.trainer.deterministic, cfg.threads = True, torch.get_num_threads()
    return [*(option for option in overrides if option.partition("=")[0].lstrip("+") != "threads"), f"threads={cfg.threads}"]


def _refuse_clocks(cfg: DictConfig) -> None:
    """Raises: ValueError for an option with which a run depends on how fast the machine is."""
    timed: Sequence[tuple[str, Any]] = (
        ("trainer.max_time", cfg.trainer.get("max_time")),
        ("technique.live_quality.budget", ((cfg.get("technique") or {}).get("live_quality") or {}).get("budget")),
    )
    for key, value in timed:
        if value is not None:
            raise ValueError(f"{key}={value} depends on the clock, which repro=strict excludes; set it to null, or repro=fast")


def told(error: RuntimeError) -> ValueError | None:
    """Returns the error in one line for an operation that a strict run refuses; None for another error."""
    if NOT_REPEATABLE not in str(error):
        return None
    operation = str(error).split()[0]
    return ValueError(
        f"repro=strict: {operation} {NOT_REPEATABLE} on this device; choose other options, trainer=cpu, or repro=fast"
    )
