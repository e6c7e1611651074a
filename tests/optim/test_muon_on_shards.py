"""Muon under fully_shard: what it orthogonalises are whole matrices, not the rows that a rank holds."""

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from etude.optim.optimizers import muon

SIZES = ((96, 64), (64, 64), (64, 64), (64, 7))  # wide, alike (which Muon takes together), and rows that two ranks can't halve


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(fan_in, fan_out) for fan_in, fan_out in SIZES))


def gradient(weight: Tensor, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(weight.shape, generator=generator)


def trained(model: nn.Module) -> list[Tensor]:
    """The whole weights after three steps with given gradients."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    biases = [p for p in model.parameters() if p.ndim == 1]
    optimizer = muon([{"params": matrices}, {"params": biases, "weight_decay": 0.0}])
    for step in range(3):
        for p in model.parameters():
            full = gradient(p, step)
            p.grad = distribute_tensor(full, p.device_mesh, p.placements) if isinstance(p, DTensor) else full
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def on_rank(rank: int, meeting: str, found: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    weights = trained(model)
    if rank == 0:
        torch.save(weights, found)
    dist.destroy_process_group()


def test_muon_orthogonalises_whole_matrices(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(str(tmp_path / "meeting"), str(tmp_path / "found.pt")), nprocs=2)  # type: ignore[no-untyped-call]
    whole, start = trained(network()), list(network().parameters())
    for split, weight, before in zip(torch.load(tmp_path / "found.pt"), whole, start, strict=True):
        assert (weight - before).abs().max() > 1e-3
        torch.testing.assert_close(split, weight, atol=1e-4, rtol=0)  # bfloat16, one by one or several at once
