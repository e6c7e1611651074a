"""Sharding of a task's networks over several devices (trainer=fsdp)."""

import pytorch_lightning as pl
from torch import nn

SHARDING = ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy")  # by name, since importing them takes long


def is_sharded(trainer: pl.Trainer) -> bool:
    """Returns whether the strategy splits weights, gradients or the optimizer's state, so that no device has them whole."""
    return type(trainer.strategy).__name__ in SHARDING


def shard_networks(task: pl.LightningModule) -> None:
    """Shards every network of the task, and every block of its module lists, over the devices of its mesh."""
    from torch.distributed.fsdp import fully_shard

    assert task.device_mesh is not None
    mesh = task.device_mesh["data_parallel"]
    networks = [child for child in task.children() if any(True for _ in child.parameters())]
    for network in networks:
        for part in network.modules():
            if isinstance(part, nn.ModuleList):
                for block in part:
                    fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
