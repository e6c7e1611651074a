"""Technique lora: trains small low-rank adapters of the linear layers and leaves the weights of another run as they are.

The package peft has adapters, too. It wraps whole models by classes of its own and stores them in files of its own, while a
technique here must resume bit for bit, be averaged by `ema`, and leave checkpoints that every program reads. That is what
`etude.core.adapters` adds; the method itself is one line.
"""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch import nn

from etude.core.adapters import adaptable_layers, adapters_of, add_adapter
from etude.core.phases import embeddings_of
from etude.core.sharding import is_sharded
from etude.core.task import Task
from etude.core.technique import Power, Technique

log = logging.getLogger(__name__)


class Lora(Technique):
    """Trains W + (alpha / r) B A instead of W, in chosen linear layers; A [r, in] and B [out, r] learn, all else is frozen.

    B is 0 at first, so training begins with the function of the weights that the run starts from. Checkpoints hold the sums under
    the usual names: `generate`, `evaluate`, `etude export` and `weights=` read them as those of any other run. Averages and the
    weights of early stopping are those of A and B.

    When to use: to fine-tune a trained model on little music, where training all weights would memorize it, or where many small
    variants of one model are kept. The learning rate is that of the optimizer; adapters take a higher one than all weights do.
    Suggested: rank 8, alpha twice the rank. With several ranks compared, alpha stays.

    Source: Hu et al. 2021 (LoRA), section 4.

    Args:
        rank: r, at least 1 and at most the smaller side of every adapted weight.
        alpha: factor of the update, above 0; the update is multiplied by alpha / rank.
        modules: patterns of the names of the layers to adapt, such as "*.attention.*"; "*" stands for any text. Layers that share
            their weight with another module are left out.
        also_train: prefixes of the names of parameters that are trained beside the adapters; `embeddings` stands for all
            embedding tables.
        seed: of the initial A.

    Raises:
        ValueError: an option out of its range; in setup, a pattern that fits no layer, or weights sharded over devices.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.INITIAL_WEIGHTS})
    needs_weights: ClassVar[bool] = True
    holds_weights: ClassVar[bool] = True

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        modules: Sequence[str] = ("*",),
        also_train: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if rank < 1:
            raise ValueError(f"technique.lora.rank is {rank}, must be at least 1; 8 is a good start")
        if not alpha > 0:
            raise ValueError(f"technique.lora.alpha is {alpha}, must be above 0; twice the rank is a good start")
        if isinstance(modules, str) or not modules:
            raise ValueError(f"technique.lora.modules is {modules!r}, must be a list of patterns; ['*'] takes all linear layers")
        if isinstance(also_train, str):
            raise ValueError(f"technique.lora.also_train is {also_train!r}, must be a list of prefixes, such as [embeddings]")
        self.rank, self.alpha, self.modules, self.also_train = rank, alpha, tuple(modules), tuple(also_train)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or adapters_of(pl_module):
            return
        assert isinstance(pl_module, Task)
        who = type(pl_module).__name__
        if is_sharded(trainer):
            raise ValueError(f"technique lora adapts whole weights, but trainer=fsdp shards those of {who}; choose trainer=ddp")
        layers = self._layers(pl_module)
        chosen = self._also(pl_module)
        for number, layer in enumerate(layers.values()):
            add_adapter(layer, rank=self.rank, alpha=self.alpha, draws=self.generator(number))
        adapters = {id(p) for adapter in adapters_of(pl_module).values() for p in adapter.parameters()}
        held = [name for name, p in pl_module.named_parameters() if id(p) not in adapters and name not in chosen]
        pl_module.phases.hold(pl_module, held)
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        total = sum(p.numel() for p in pl_module.parameters())
        log.warning(
            f"lora: {trained:,} of {total:,} parameters are trained ({trained / total:.1%}): "
            f"adapters of rank {self.rank} in {len(layers)} layers" + (f", and {len(chosen)} other parameters" if chosen else "")
        )

    @property
    def acts_on_layers(self) -> bool:
        return True

    def _layers(self, task: Task) -> dict[str, nn.Linear]:
        """Returns the layers to adapt by name. Raises: ValueError if a pattern fits none, or the rank is too large for one."""
        possible, who = adaptable_layers(task), type(task).__name__
        if not possible:
            raise ValueError(f"technique lora needs linear layers, and {who} has none to adapt; remove it from technique=[...]")
        for pattern in self.modules:
            if not any(fnmatchcase(name, pattern) for name in possible):
                raise ValueError(
                    f"technique lora: modules has {pattern!r}, which fits no linear layer of {who} with a weight of its own; "
                    f"there are {_shown(possible)}"
                )
        layers = {name: each for name, each in possible.items() if any(fnmatchcase(name, p) for p in self.modules)}
        for name, layer in layers.items():
            if self.rank > (most := min(layer.weight.shape)):
                raise ValueError(
                    f"technique lora: rank is {self.rank}, but {name} of {who} has rank {most} at most; give a lower "
                    "technique.lora.rank, or leave that layer out of technique.lora.modules"
                )
        return layers

    def _also(self, task: Task) -> set[str]:
        """Returns the names of the parameters that `also_train` chooses. Raises: ValueError for a prefix that fits none."""
        names = [name for name, _ in task.named_parameters()]
        found: set[str] = set()
        for prefix in self.also_train:
            starts = tuple(f"{name}." for name in embeddings_of(task)) if prefix == "embeddings" else (prefix,)
            if not (fitting := {name for name in names if starts and name.startswith(starts)}):
                raise ValueError(
                    f"technique lora: also_train has {prefix!r}, which begins no parameter name of {type(task).__name__}; "
                    f"there are {_shown(names)}"
                )
            found |= fitting
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha}  # not empty, so that `kept_options` is asked

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"rank", "alpha", "modules", "also_train"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: W, A and B are part of the task's checkpoint."""


def _shown(names: Any) -> str:
    listed = sorted({name.replace(".0.", ".*.") for name in names if not any(f".{n}." in name for n in range(1, 100))})
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "")
