"""Accuracy that is certain: by randomized smoothing with a stated confidence, and by interval bounds.

Shapes: n examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from etude.attacks.bounds import certified
from etude.attacks.budget import check_snr
from etude.attacks.smoothing import certify, check_samples
from etude.core.class_protocols import HasLayers
from etude.evaluation.progress import progress
from etude.evaluation.robustness.attacking import by_pgd, curve
from etude.evaluation.robustness.examples import attacked, check_classifier, heads_of, held_out, victims
from etude.evaluation.robustness.tables import Row, check_counts, check_ratios, write

CERTAIN = "certified accuracy"
ATTACKED = "accuracy under PGD"


def score_smoothing(
    *, task: Any, datamodule: Any, folder: Path, noise_db: float | None = None, sigma: float | None = None, samples: int = 500,
    selection: int = 50, alpha: float = 0.001, snr_db: Sequence[float] = (60, 50, 40, 30, 20), heads: Sequence[str] | None = None,
    num_examples: int | None = 100, split: str = "test", seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Certifies a classifier under Gaussian noise: writes robustness.csv, robustness.png and report.html.

    Each example gets an l2 radius within which the smoothed classifier says the same, with a probability of 1 - alpha. It is
    compared with the length of a change of each signal-to-noise ratio.

    Args:
        noise_db: how far the noise lies below the mean power of the examples; None for 20. sigma: instead, its standard
            deviation, the same for all examples.
        samples: noisy copies of each example for its radius; selection: others, which choose its class.
        alpha: probability with which a radius may be too large. The rest: see `attacking.score`.

    Returns: a row for each head and ratio.

    Raises: ValueError for too few samples to certify anything.

    Source: Cohen, Rosenfeld and Kolter 2019.
    """
    check_classifier(task)
    check_samples(samples, alpha)
    check_counts(selection=selection)
    ratios = check_ratios(snr_db)
    if sigma is not None and noise_db is not None:
        raise ValueError(f"robustness.sigma={sigma} and robustness.noise_db={noise_db} both say how loud the noise is; give one")
    noise_db = 20 if noise_db is None else noise_db
    check_snr(noise_db, "robustness.noise_db")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"robustness.sigma={sigma} must be above 0, or null for the noise of robustness.noise_db")
    rows, radii = list[Row](), list[Row]()
    batches = held_out(task, datamodule, split=split, num=num_examples, seed=seed)
    draws = torch.Generator(task.device).manual_seed(seed)
    with attacked(task):
        for head in heads_of(task, heads):
            on = victims(task, batches, head)
            powers = torch.cat([victim.budget(noise_db, "linf").size for victim in on]).square()
            noise = float(powers.mean().sqrt()) if sigma is None else sigma
            classes, radius, sizes = [], [], {ratio: list[torch.Tensor]() for ratio in ratios}
            for victim in progress(on, head):
                found = certify(
                    victim.logits_of(victim.everything), victim.values, sigma=noise, samples=samples, selection=selection,
                    alpha=alpha, counted=victim.counted, generator=draws,
                )  # fmt: skip
                classes.append(found.classes == victim.true.cpu())
                radius.append(found.radius)
                for ratio in ratios:
                    sizes[ratio].append(victim.budget(ratio, "l2").size.cpu())
            right, reach = torch.cat(classes), torch.cat(radius)
            clean = torch.cat([victim.right for victim in on]).float().mean()
            rows += [
                {"head": head, "snr_db": ratio, "examples": len(right), "clean accuracy": float(clean),
                 "accuracy of the smoothed classifier": float(right.float().mean()),
                 CERTAIN: float((right & (reach >= torch.cat(sizes[ratio]))).float().mean())}
                for ratio in ratios
            ]  # fmt: skip
            radii.append(
                {"head": head, "sigma": noise, "median radius": float(reach.median()), "largest radius": float(reach.max())}
            )
    about = (
        f"Randomized smoothing: {samples} noisy copies of each example bound the probability of its class with a confidence of "
        f"{100 * (1 - alpha):g} % for each example (Clopper-Pearson). Certified accuracy: right, with a radius (l2) of at least "
        "the length of a change of that signal-to-noise ratio. No attack lowers it; it is that of the classifier with noise."
    )
    write(folder, "randomized smoothing", about, rows, shown=(CERTAIN,), more=[("Radii", "In units of the inputs.", radii)])
    return rows


def score_ibp(
    *, task: Any, datamodule: Any, folder: Path, snr_db: Sequence[float] = (100, 90, 80, 70, 60, 50, 40),
    heads: Sequence[str] | None = None, num_examples: int | None = 200, split: str = "test", steps: int = 20, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Certifies a classifier by interval bounds (linf) beside PGD: writes robustness.csv, robustness.png and report.html.

    Args: steps: of PGD; the true accuracy lies between both curves. The rest: see `attacking.score`.

    Returns: a row for each head and ratio.

    Raises: ValueError for a network that is no chain of layers with bounds.

    Source: Gowal et al. 2018.
    """
    check_classifier(task)
    check_counts(steps=steps)
    if not isinstance(task, HasLayers):
        raise ValueError(
            f"robustness=ibp needs a chain of layers from mels to logits, which {type(task).__name__} does not offer; train "
            "task=grader model=grader_plain, or use robustness=smoothing"
        )
    ratios, rows = check_ratios(snr_db), list[Row]()
    batches = held_out(task, datamodule, split=split, num=num_examples, seed=seed)
    with attacked(task):
        for head in heads_of(task, heads):
            on = victims(task, batches, head)
            layers = task.layers(head)
            found = curve(on, head, "PGD", by_pgd(steps=steps), ratios, "linf", seed)
            for row in found:
                with torch.no_grad():
                    holds = [certified(layers, v.values, v.true, v.budget(row["snr_db"], "linf")) for v in on]
                certain = float(torch.cat(holds).float().mean())
                rows.append(
                    {"head": head, "snr_db": row["snr_db"], "examples": row["examples"], "clean accuracy": row["clean accuracy"],
                     CERTAIN: certain, ATTACKED: row["accuracy under attack"]}
                )  # fmt: skip
    about = (
        "Interval bound propagation: no change within the least signal-to-noise ratio (linf) changes the class of the examples "
        "that count as certified. The true accuracy lies between this and the accuracy under PGD."
    )
    write(folder, "interval bounds", about, rows, shown=(CERTAIN, ATTACKED))
    return rows
