"""Training steps per second of style transfer against plain eager float32 PyTorch: the same networks, losses and batches.

    python benchmarks/style_speed.py --models mel_nano mel_tiny --rows docs/results/rows/style_speed.jsonl

Etude runs `python train.py task=style_transfer styles=[folk,rock] technique=[] data.batch_size=2` (Lightning, bfloat16
autocast, one backward pass, fused Adam, logging). The peer is a hand-written loop: two Adam optimizers, a step of the generators,
then one of the discriminator, float32, no logging. The two alternate; a round is 50 steps after 10 of warm-up.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import open_dict
from peer import context
from training import composed

from etude.core.task import frozen
from etude.run import parts as run
from etude.run.quiet import quiet_lightning

WARMUP, STEPS = 10, 50


class Stopwatch(pl.Callback):
    """Wall seconds of the steps after the first ten."""

    seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARMUP:
            self._start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start


def ours(cfg: Any, task: Any, datamodule: Any, folder: Path) -> float:
    watch = Stopwatch()
    loggers = [run.instantiate(node) for node in cfg.logger.values()]
    trainer = run.instantiate(
        cfg.trainer, logger=loggers, callbacks=[watch], enable_progress_bar=False, enable_checkpointing=False,
        default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    return STEPS / watch.seconds


def by_hand(task: Any, batches: list[Any], lr: float) -> float:
    """The same GAN written as a loop: LSGAN, a noisy cycle, R1 every 8 steps."""
    (to_rock, to_folk), discriminator = task.generators, task.judge
    generator_optimizer = torch.optim.Adam([*to_rock.parameters(), *to_folk.parameters()], lr=lr, betas=(0.5, 0.9))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
    mean, deviation = task.bands.statistics[:, 0, None, :, None], task.bands.statistics[:, 1, None, :, None]
    start = 0.0
    for step in range(WARMUP + STEPS):
        if step == WARMUP:
            start = time.perf_counter()
        folk, rock = ((task.contract.denormalise(batches[step]["mel"]) - mean) / deviation).unbind(0)
        style = torch.zeros(len(folk), dtype=torch.long)
        noise = [0.3 * torch.randn_like(folk) for _ in range(4)]
        fake_rock, fake_folk = to_rock(folk + noise[0]), to_folk(rock + noise[1])
        with frozen(discriminator):
            adversarial = _generator_loss(discriminator, fake_rock, fake_folk, style)
        from_rock, from_folk = (torch.lerp(fake.detach(), fake, 0.3) for fake in (fake_rock, fake_folk))
        cycle = ((to_folk(from_rock + noise[2]) - folk).abs() * deviation[0]).mean()
        cycle = cycle + ((to_rock(from_folk + noise[3]) - rock).abs() * deviation[1]).mean()
        generator_optimizer.zero_grad()
        (adversarial + 10 * cycle).backward()
        torch.nn.utils.clip_grad_norm_([*to_rock.parameters(), *to_folk.parameters()], 5.0)
        generator_optimizer.step()
        penalised = step % 8 == 0
        reals = [x.requires_grad_(penalised) for x in (folk, rock)]
        real = [discriminator(x, style + s)[0][0] for s, x in enumerate(reals)]
        fake = [discriminator(x.detach(), style + s)[0][0] for s, x in enumerate((fake_folk, fake_rock))]
        loss = sum((r - 1).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True))
        if penalised:
            gradients = torch.autograd.grad(sum(r.sum() for r in real), reals, create_graph=True)
            loss = loss + 4 * sum(g.square().sum((1, 2)).mean() for g in gradients) / folk.shape[-1]
        discriminator_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 5.0)
        discriminator_optimizer.step()
    return STEPS / (time.perf_counter() - start)


def _generator_loss(discriminator: Any, fake_rock: torch.Tensor, fake_folk: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    return sum((discriminator(x, style + s)[0][0] - 1).square().mean() for s, x in ((1, fake_rock), (0, fake_folk)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mel_nano", "mel_tiny"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=Path, default=None)
    parser.add_argument("options", nargs="*", help="more options, as for train.py (after --)")
    args = parser.parse_args()
    quiet_lightning()
    for model in args.models:
        options = [
            "task=style_transfer",
            "styles=[folk,rock]",
            f"model={model}",
            "data.batch_size=2",
            "technique=[]",
            *args.options,
        ]
        with TemporaryDirectory() as scratch:
            cfg = composed(options, Path(scratch))
            with open_dict(cfg):
                cfg.trainer.max_steps, cfg.trainer.limit_val_batches = WARMUP + STEPS, 0
                cfg.trainer.val_check_interval = None
            datamodule = run.prepare_data(cfg.data, None, Path(scratch))
            task = run.build_task(cfg, **datamodule.parts)
            loader = iter(datamodule.train_dataloader())
            batches = [next(loader) for _ in range(WARMUP + STEPS)]
            pairs = []
            for number in range(args.rounds):
                sides = [lambda: ours(cfg, copy.deepcopy(task), datamodule, Path(scratch)),  # noqa: B023
                         lambda: by_hand(copy.deepcopy(task), batches, cfg.optimizer.lr)]  # noqa: B023  # fmt: skip
                first = sides[number % 2]()
                second = sides[1 - number % 2]()
                pairs.append((first, second) if number % 2 == 0 else (second, first))
        ratios = sorted(mine / peer for mine, peer in pairs)
        row = {
            "case": f"{model}, 64 x 128, batch 2", "parameters": sum(p.numel() for p in task.generators.parameters()),
            "ours_steps_per_s": statistics.median(mine for mine, _ in pairs),
            "peer_steps_per_s": statistics.median(peer for _, peer in pairs),
            "ratio": statistics.median(ratios), "ratio_range": [ratios[0], ratios[-1]], "rounds": args.rounds,
        }  # fmt: skip
        print(json.dumps(row))
        if args.rows is not None:
            args.rows.parent.mkdir(parents=True, exist_ok=True)
            with args.rows.open("a") as file:
                file.write(json.dumps({**context(), **row}) + "\n")


if __name__ == "__main__":
    main()
