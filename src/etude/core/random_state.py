"""Reads and sets the states of PyTorch's random generators: that of the CPU and that of one device."""

from typing import Any

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of the CPU's generator and, under "device", of the device's if that is not the CPU."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = _module(device).get_rng_state(*_index(device))
    return states


def set_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Sets the states that `random_state` returned; that of a device is left out if this device is the CPU."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type != "cpu" and "device" in states:
        _module(device).set_rng_state(states["device"].cpu(), *_index(device))


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return (device,) if device.type == "cuda" else ()
