"""Technique adversarial: a critic, trained in the same step, judges tokens that the model draws against those of real music.

Shapes: b rows, t tokens of a row, n judged tokens, v vocabulary, c width of the critic.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core.batch import Batch
from etude.core.protocols import PredictsTokens
from etude.core.task import Task, frozen
from etude.core.technique import GradientSlot, Technique
from etude.losses.adversarial import discriminator_loss, generator_loss, r1_penalty

KERNEL, DILATION = 5, 4  # of the two convolutions, through which the critic sees 20 tokens before the latest one


class TokenCritic(nn.Module):
    """Scores a token after the real tokens before it; the score is high for tokens that it takes for real."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.near = nn.Conv1d(width, width, KERNEL)
        self.far = nn.Conv1d(width, width, KERNEL, dilation=DILATION)
        self.hidden = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1)

    def context(self, tokens_bt: Tensor) -> Tensor:
        """Returns what the critic knows of the tokens up to each one, [b, t, c]."""
        x_bct: Tensor = self.embedding(tokens_bt).transpose(1, 2)
        for layer in (self.near, self.far):
            past = (KERNEL - 1) * layer.dilation[0]
            x_bct = F.leaky_relu(layer(F.pad(x_bct, (past, 0))), 0.2)
        return x_bct.transpose(1, 2)

    def forward(self, context_nc: Tensor, token_nc: Tensor) -> Tensor:
        """Returns scores [n] of tokens, given by their embeddings, after their contexts."""
        scores: Tensor = self.score(F.leaky_relu(self.hidden(torch.cat([context_nc, token_nc], dim=-1)), 0.2))
        return scores[..., 0]


class Adversarial(Technique):
    """Adds an adversarial game: a critic tells tokens that the model draws from real ones, and the model learns to pass.

    For tasks on tokens. At places of the batch the critic sees the real tokens so far and one that may follow: the real one, or
    one drawn from the model's distribution. The draw is a straight-through Gumbel-softmax sample: a whole token forward, whose
    gradient is that of the softmax. (Expected embeddings would be simpler, but a critic tells every mixture from a token, so
    that the model would only learn to be certain. Neighbouring drawn tokens are not shown together: under teacher forcing they
    do not know of each other, and a perfect model would be told from music.) Terms:

    - `adversarial`: -D(drawn), which trains the model; its weight rises from 0 to `weight` over the first `warmup` batches.
    - `critic/game`: max(0, 1 - D(real)) + max(0, 1 + D(drawn)), and `critic/r1`: |d D / d embedding|^2 of real tokens; they
      train the critic alone.

    The critic is a player of the same step: its gradient is that of the same backward pass, and its own Adam follows it. It is
    no part of the task, so averages and weights for sampling do not contain it; a checkpoint does, and resuming is exact.

    When to use: to study whether samples gain. The likelihood is what the model is trained on already, and was worse with a
    critic in short runs of equal CPU time (docs/results/techniques.md). Suggested: weight 0.01, a warm-up of 100 batches.

    Args:
        weight: of `adversarial` after the warm-up, above 0.
        warmup: batches over which it rises, at least 0; the critic learns from the first batch on.
        r1: gamma of the R1 penalty, at least 0.
        temperature: of the Gumbel-softmax sample, above 0; its gradient is smoother and less exact if higher.
        positions: how many tokens of each batch are judged, at least 1, chosen at random.
        width: of the critic, at least 1.
        critic_lr: its learning rate, above 0.
        seed: of the critic's first weights, of the draws and of their places.

    Raises:
        ValueError: an option out of its range; in setup, the task does not predict tokens.

    Source: Goodfellow et al. 2014; Jang et al. 2017 (straight-through Gumbel-softmax); Lim and Ye 2017 (hinge); Mescheder et
    al. 2018 (R1), here for the embedding; Mirza and Osindero 2014 (conditional critic).
    """

    gradient_slot: ClassVar[GradientSlot] = GradientSlot.PROJECT

    def __init__(
        self,
        *,
        weight: float = 0.01,
        warmup: int = 100,
        r1: float = 1.0,
        temperature: float = 1.0,
        positions: int = 1024,
        width: int = 64,
        critic_lr: float = 0.001,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        for name, value, valid, span in (
            ("weight", weight, weight > 0, "above 0; 0.01 is a good start"),
            ("warmup", warmup, warmup >= 0, "at least 0 batches; 100 is a good start"),
            ("r1", r1, r1 >= 0, "at least 0; 1 is a good start"),
            ("temperature", temperature, temperature > 0, "above 0; 1 is a good start"),
            ("positions", positions, positions >= 1, "at least 1 token; 1024 is a good start"),
            ("width", width, width >= 1, "at least 1; 64 is a good start"),
            ("critic_lr", critic_lr, critic_lr > 0, "above 0; 0.001 is a good start"),
        ):
            if not valid:
                raise ValueError(f"technique.adversarial.{name} is {value}, must be {span}")
        self.weight, self.warmup, self.r1, self.temperature = weight, warmup, r1, temperature
        self.positions, self.width, self.critic_lr = positions, width, critic_lr
        self.batches = 0
        self._critic: list[TokenCritic] = []  # in a list, as it is no submodule of the task
        self._optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] = {}

    @property
    def critic(self) -> TokenCritic:
        """The critic; there is one from the start of training on."""
        return self._critic[0]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(pl_module, PredictsTokens):
            raise ValueError(
                f"technique adversarial judges tokens, which {type(pl_module).__name__} does not predict; remove it from "
                "technique=[...]"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PredictsTokens)
        self.make_critic(len(pl_module.tokenizer), pl_module.device)

    def make_critic(self, vocab_size: int, device: torch.device) -> None:
        """Makes the critic and its optimizer, with the state of the checkpoint if there is one."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.generator(0).initial_seed())
            critic = TokenCritic(vocab_size, self.width)
        self._critic = [critic.to(device)]
        self._optimizer = torch.optim.Adam(critic.parameters(), lr=self.critic_lr, betas=(0.5, 0.99))
        if self._restored:
            critic.load_state_dict(self._restored["critic"])
            self._optimizer.load_state_dict(self._restored["optimizer"])
            for group in self._optimizer.param_groups:
                group["lr"] = self.critic_lr  # another rate may have been asked for

    # --- training ---

    def extra_losses(self, task: Task, batch: Batch, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        draws = self.generator(self.batches * task.trainer.world_size + task.global_rank, task.device)
        self.batches += 1
        counted_n = torch.nonzero(batch["targets"].flatten() != -100)[:, 0]
        if not len(counted_n):
            return {}
        chosen_n = counted_n[torch.randperm(len(counted_n), generator=draws, device=task.device)[: self.positions]]
        with torch.autocast(task.device.type, enabled=False):
            logits_nv = task.trace["logits"].flatten(0, 1).index_select(0, chosen_n).float()
            drawn_nv = straight_through_sample(logits_nv, temperature=self.temperature, generator=draws)
            return self.terms(batch["tokens"], chosen_n, drawn_nv, batch["targets"].flatten()[chosen_n])

    def terms(self, tokens_bt: Tensor, chosen_n: Tensor, drawn_nv: Tensor, targets_n: Tensor) -> dict[str, Tensor]:
        """Returns the terms of both players for tokens at the places `chosen_n` of the flattened rows.

        drawn_nv: one-hot samples with the graph of the model. targets_n: the real tokens.
        """
        critic = self.critic
        with frozen(critic):
            context_nc = critic.context(tokens_bt).flatten(0, 1)[chosen_n]
            adversarial = generator_loss(critic(context_nc, drawn_nv @ critic.embedding.weight), "hinge")
        context_nc = critic.context(tokens_bt).flatten(0, 1)[chosen_n]
        fake_n = critic(context_nc, drawn_nv.detach() @ critic.embedding.weight)
        found = {
            "adversarial": adversarial,
            "critic/game": discriminator_loss(critic(context_nc, critic.embedding(targets_n)), fake_n, "hinge"),
        }
        if self.r1:
            real_nc = critic.embedding(targets_n).detach().requires_grad_()
            found["critic/r1"] = r1_penalty(critic(context_nc.detach(), real_nc), real_nc)
        return found

    def scale_losses(self, task: Task, losses: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        rise = min(1.0, (self.batches - 1) / self.warmup) if self.warmup else 1.0
        factors: dict[str, float | Tensor] = {"adversarial": self.weight * rise, "critic/r1": self.r1 / 2}
        return {name: factor for name, factor in factors.items() if name in losses}

    def transform_gradients(self, task: Task) -> None:
        """Makes the critic's step; the model's follows."""
        assert self._optimizer is not None
        gradients = [parameter.grad for parameter in self.critic.parameters() if parameter.grad is not None]
        for gradient in gradients if task.trainer.world_size > 1 else ():  # no parameters of DDP
            gradient.copy_(task.trainer.strategy.reduce(gradient.clone(), reduce_op="mean"))
        if gradients and torch.isfinite(nn.utils.get_total_norm(gradients)):  # otherwise finite or stability skips the step
            self._optimizer.step()
        self._optimizer.zero_grad()

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        if self._optimizer is None:
            return {"batches": self.batches, **self._restored}
        critic = {name: value.detach().clone() for name, value in self.critic.state_dict().items()}
        return {"batches": self.batches, "critic": critic, "optimizer": self._optimizer.state_dict()}

    @classmethod
    def kept_options(cls, state: Mapping[str, Any]) -> frozenset[str]:
        return frozenset({"width"})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]
        self._restored = {name: state_dict[name] for name in ("critic", "optimizer") if name in state_dict}


def straight_through_sample(logits_nv: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
    """Returns a one-hot sample of softmax(logits) for each row, [n, v], with the gradient of the relaxed sample.

    The relaxed sample is y = softmax((logits + g) / temperature) with Gumbel noise g; the sample is one-hot at its maximum.

    Source: Jang et al. 2017, section 2.2 (straight-through Gumbel-softmax).
    """
    uniform = torch.rand(logits_nv.shape, generator=generator, device=logits_nv.device)
    gumbel = -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
    soft_nv = F.softmax((logits_nv + gumbel) / temperature, dim=-1)
    hard_nv = F.one_hot(soft_nv.argmax(-1), soft_nv.shape[-1]).to(soft_nv)
    return hard_nv + (soft_nv - soft_nv.detach())
