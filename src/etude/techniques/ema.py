"""Exponential moving average of the weights, used for validation, sampling and export."""

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from etude.core.technique import Power, Technique


class Ema(Technique):
    """Keeps average <- d * average + (1 - d) * weights after each update and evaluates with the average.

    d = min(decay, (1 + n) / (10 + n)) after n updates, so that a young average forgets the initial weights. The
    checkpoint's `state_dict` holds the average: whoever loads it for sampling or export gets it without knowing of this
    technique; the training weights travel in the technique's own state.

    When to use: almost always; it costs one pass over the weights a step. Suggested: 0.999 for 1,000 to 10,000 steps,
    0.9999 beyond.

    Source: Polyak and Juditsky 1992; the warm-up of d follows TensorFlow's ExponentialMovingAverage.

    Args:
        decay: d at the end, in (0, 1).
        seed: unused, every technique has one.
    """

    claims: ClassVar[frozenset[Power]] = frozenset({Power.EVALUATION_WEIGHTS})

    def __init__(self, *, decay: float = 0.999, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if not 0 < decay < 1:
            raise ValueError(f"ema.decay is {decay}, must be in (0, 1); 0.999 suits 1,000 to 10,000 steps")
        self.decay = decay
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._restored: dict[str, dict[str, Tensor]] = {}
        self._swapped = False
        self._seen_step = -1

    @staticmethod
    def _weights(task: pl.LightningModule) -> dict[str, Tensor]:
        # A tied weight has several names in a state dictionary: it is averaged once, under its first.
        unique: dict[int, tuple[str, Tensor]] = {}
        for name, value in task.state_dict().items():
            if value.is_floating_point():
                unique.setdefault(value.data_ptr(), (name, value))
        return dict(unique.values())

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy).__name__ in ("ModelParallelStrategy", "FSDPStrategy"):
            raise ValueError("technique ema averages whole weights, trainer=fsdp splits them; add technique=[]")

    @torch.no_grad()
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = self._weights(pl_module)
        if self._restored:  # the module was loaded with the average: give it back its training weights
            self._average = {name: value.to(weights[name].device) for name, value in self._restored["average"].items()}
            for name, value in self._restored["training_weights"].items():
                weights[name].copy_(value)
            self._restored = {}
        else:
            self._average = {name: value.clone() for name, value in weights.items()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen_step = trainer.global_step  # known only now: a resumed run's step is restored after on_fit_start

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:  # gradients are still being accumulated
            return
        self._seen_step = trainer.global_step
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = self._weights(pl_module)
        torch._foreach_lerp_(list(self._average.values()), [weights[name] for name in self._average], 1 - decay)

    @torch.no_grad()
    def _swap(self, task: pl.LightningModule) -> None:
        for name, weight in self._weights(task).items():
            held = weight.clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(held)
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._swapped:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._average:
            return
        weights = self._weights(pl_module)
        averages = {weights[name].data_ptr(): value for name, value in self._average.items()}
        own = checkpoint["callbacks"][self.state_key]
        own["average"], own["training_weights"] = self._average, weights
        checkpoint["state_dict"] = {
            name: averages.get(value.data_ptr(), value) for name, value in checkpoint["state_dict"].items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self._restored = {key: state_dict[key] for key in ("average", "training_weights") if key in state_dict}
