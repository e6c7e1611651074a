"""Accuracy of a classifier under attack, over the size of the change; and whether its gradients can be trusted.

Shapes: n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.attacks.budget import Budget, check_snr
from etude.attacks.ensemble import ATTACKS, ensemble
from etude.attacks.gradient import fgsm, pgd
from etude.attacks.minimal import carlini_wagner
from etude.attacks.objectives import Fooled, margin
from etude.attacks.square import square
from etude.evaluation.progress import progress
from etude.evaluation.robustness.examples import Victim, attacked, check_classifier, heads_of, held_out, victims
from etude.evaluation.robustness.tables import Row, check_counts, check_ratios, write
from etude.evaluation.robustness.transfer import other_model, transferred

Breaks = Callable[[Victim, Tensor, Budget, torch.Generator], Tensor]  # rows, their budget -> whether each is broken, bool [k]
NOISE = "accuracy under random noise"
UNDER = "accuracy under attack"
BALANCED, CLEAN_BALANCED = "balanced accuracy under attack", "balanced clean accuracy"  # means over classes
QUERIES = 500  # of Square, where they are not given


def score_fgsm(
    *, task: Any, datamodule: Any, folder: Path, snr_db: Sequence[float] = (60, 50, 40, 30, 20), norm: str = "linf",
    heads: Sequence[str] | None = None, num_examples: int | None = 200, split: str = "test", transfer_from: str | None = None,
    find: Callable[..., Path] | None = None, load: Callable[[Path], tuple[Any, Any]] | None = None, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Attacks by one step along the gradient (`attacks.gradient.fgsm`); see `score` for the rest."""

    def breaks(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        record = Fooled(victim.logits_of(rows), victim.values[rows], victim.true[rows], budget)
        record.logits(fgsm(record.loss(), record.inputs, budget))
        return record.found

    source = (transfer_from, find, load)
    return score(task, datamodule, folder, "FGSM", breaks, snr_db, norm, heads, num_examples, split, seed, source=source)


def score_pgd(
    *, task: Any, datamodule: Any, folder: Path, snr_db: Sequence[float] = (60, 50, 40, 30, 20), norm: str = "linf",
    steps: int = 20, restarts: int = 1, check: bool = True, check_db: float | None = None, queries: int | None = None,
    heads: Sequence[str] | None = None, num_examples: int | None = 200, split: str = "test", transfer_from: str | None = None,
    find: Callable[..., Path] | None = None, load: Callable[[Path], tuple[Any, Any]] | None = None, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Attacks by projected gradient steps (`attacks.gradient.pgd`); see `score` for the rest.

    Args:
        steps, restarts: of PGD. check: also look for masked gradients at `check_db` (see `masking`; None for 40 dB), with
            `queries` of Square (None for 500).
    """
    for name, value in (("check_db", check_db), ("queries", queries)):
        if value is not None and not check:
            raise ValueError(f"robustness.{name}={value} is of the check, which robustness.check=false leaves out; leave it out")
    check_db, queries = 40 if check_db is None else check_db, QUERIES if queries is None else queries
    check_counts(steps=steps, restarts=restarts, queries=queries)
    check_snr(check_db, "robustness.check_db")
    breaks = by_pgd(steps=steps, restarts=restarts)
    checked = (float(check_db), steps, queries) if check else None
    source = (transfer_from, find, load)
    return score(
        task, datamodule, folder, "PGD", breaks, snr_db, norm, heads, num_examples, split, seed, source=source, checked=checked
    )


def score_ensemble(
    *, task: Any, datamodule: Any, folder: Path, snr_db: Sequence[float] = (60, 50, 40, 30, 20), norm: str = "linf",
    steps: int = 50, targets: int | None = None, queries: int | None = None, attacks: Sequence[str] = ATTACKS,
    heads: Sequence[str] | None = None, num_examples: int | None = 200, split: str = "test", seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Attacks by four attacks in turn (`attacks.ensemble`): what withstands all of them counts; see `score` for the rest.

    Args:
        steps: of each APGD. targets: classes that apgd_targeted tries; None for 5. queries: of square; None for 500.
        attacks: those that are used.
    """
    if unknown := sorted(set(attacks) - set(ATTACKS)):
        raise ValueError(f"robustness.attacks names {unknown[0]}; choose among {', '.join(ATTACKS)}")
    if not attacks:
        raise ValueError(f"robustness.attacks is empty; give some of {', '.join(ATTACKS)}")
    for name, value, of in (("targets", targets, "apgd_targeted"), ("queries", queries, "square")):
        if value is not None and of not in attacks:
            raise ValueError(f"robustness.{name}={value} is of {of}, which robustness.attacks leaves out; leave it out, too")
    targets, queries = 5 if targets is None else targets, QUERIES if queries is None else queries
    check_counts(targets=targets, queries=queries)
    check_counts(least=2, steps=steps)

    def breaks(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        _, robust, _ = ensemble(
            lambda some: victim.logits_of(rows[some]), victim.values[rows], victim.true[rows], budget, steps=steps,
            targets=targets, queries=queries, attacks=tuple(attacks), generator=draws,
        )  # fmt: skip
        return ~robust

    return score(task, datamodule, folder, "ensemble", breaks, snr_db, norm, heads, num_examples, split, seed)


def score_cw(
    *, task: Any, datamodule: Any, folder: Path, snr_db: Sequence[float] = (60, 50, 40, 30, 20), steps: int = 60,
    searches: int = 4, learning_rate: float = 0.03, heads: Sequence[str] | None = None,
    num_examples: int | None = 100, split: str = "test", seed: int = 0,
) -> list[Row]:  # fmt: skip
    """Looks for the smallest change in l2 (`attacks.minimal.carlini_wagner`), once for all ratios; see `score` for the rest."""
    check_counts(steps=steps, searches=searches)
    if not learning_rate > 0:
        raise ValueError(f"robustness.learning_rate={learning_rate} must be above 0; 0.03 is a good start")
    smallest: dict[int, tuple[Victim, Tensor]] = {}  # kept with the victim, whose id would be given to another one

    def breaks(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        if id(victim) not in smallest:
            found = carlini_wagner(
                victim.logits_of(victim.everything), victim.values, victim.true, steps=steps, searches=searches,
                learning_rate=learning_rate, counted=victim.counted,
            )  # fmt: skip
            smallest[id(victim)] = victim, found.distance
        return smallest[id(victim)][1][rows] <= budget.size

    return score(task, datamodule, folder, "Carlini-Wagner", breaks, snr_db, "l2", heads, num_examples, split, seed)


def by_pgd(*, steps: int, restarts: int = 1) -> Breaks:
    """Returns the attack by PGD; an example is broken if any point on any of its paths is classified wrong."""

    def breaks(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        record = Fooled(victim.logits_of(rows), victim.values[rows], victim.true[rows], budget)
        with torch.no_grad():
            record.logits(pgd(record.loss(), record.inputs, budget, steps=steps, restarts=restarts, generator=draws))
        return record.found

    return breaks


def score(
    task: Any, datamodule: Any, folder: Path, name: str, breaks: Breaks, snr_db: Sequence[float], norm: str,
    heads: Sequence[str] | None, num_examples: int | None, split: str, seed: int, *,
    source: tuple[Any, Any, Any] = (None, None, None), checked: tuple[float, int, int] | None = None,
) -> list[Row]:  # fmt: skip
    """Measures a classifier's accuracy under an attack: writes robustness.csv, robustness.png and report.html.

    An example that is wrong without a change counts as wrong under attack; one that a smaller change breaks is broken by larger
    ones, too. Beside the attack stands random noise of the same budget.

    Args:
        task: a classifier of continuous inputs. datamodule: the data of its training. folder: the run's folder.
        snr_db: least signal-to-noise ratios of the change in dB. norm: linf or l2, see `attacks.budget.within_snr`.
        heads: those that are attacked, one after the other; None for all. num_examples: how many held-out examples; None for
            all. split: val or test. seed: of the choice and of the attacks.
        source: (another run, find, load): its inputs that PGD breaks are also tried on this model, and this one's on it.
        checked: (ratio, steps, queries) at which masked gradients are looked for.

    Returns: a row for each head and ratio.
    """
    check_classifier(task)
    ratios = check_ratios(snr_db)
    rows, sections, masks = list[Row](), list[tuple[str, str, list[Row]]](), list[Row]()
    batches = held_out(task, datamodule, split=split, num=num_examples, seed=seed)
    other = None if source[0] is None else other_model(task, batches, heads_of(task, heads), source)
    with attacked(task):
        for head in heads_of(task, heads):
            on = victims(task, batches, head)
            rows += curve(on, head, name, breaks, ratios, norm, seed)
            if checked is not None:
                masks += masking(on, head, *checked, norm=norm, seed=seed)
    if masks:
        sections.append(("Masking: does the defence hide its gradients?", "; ".join(verdicts(masks)), masks))
    if other is not None:
        found = transferred(task, other, batches, heads_of(task, heads), ratios, norm, seed=seed)
        sections.append(("Transfer between two models", "Changes that break one model, tried on the other.", found))
    about = (
        f"{name} within a least signal-to-noise ratio of the inputs ({norm}). Accuracy under attack: the share of examples that "
        f"are right and stay right; balanced, its mean over classes. {rows[0]['examples']} examples of the {split} split."
    )
    write(folder, f"{name} ({norm})", about, rows, shown=(UNDER, NOISE), more=sections)
    return rows


def curve(on: list[Victim], head: str, name: str, breaks: Breaks, ratios: list[float], norm: str, seed: int) -> list[Row]:
    """Returns a row for each ratio, from the smallest changes on."""
    total = sum(len(victim.true) for victim in on)
    standing = [victim.right.clone() for victim in on]
    clean, balanced = sum(int(right.sum()) for right in standing) / total, mean_over_classes(on, standing)
    draws, rows = torch.Generator(on[0].values.device).manual_seed(seed), list[Row]()
    for ratio in progress(ratios, f"{head}, {name}"):
        noisy = 0
        for victim, left in zip(on, standing, strict=True):
            budget = victim.budget(ratio, norm)
            noise = budget.projected(budget.random(victim.values, draws).sign() * budget.like(victim.values))
            with torch.no_grad():
                noisy += int((victim.logits_of(victim.everything)(victim.values + noise).argmax(1) == victim.true).sum())
            rest = left.nonzero()[:, 0]
            if len(rest):
                left[rest] = ~breaks(victim, rest, budget.take(rest), draws)
        robust = sum(int(left.sum()) for left in standing) / total
        rows.append(
            {"head": head, "attack": name, "norm": norm, "snr_db": ratio, "examples": total, "clean accuracy": clean,
             UNDER: robust, NOISE: noisy / total, CLEAN_BALANCED: balanced, BALANCED: mean_over_classes(on, standing)}
        )  # fmt: skip
    return rows


def mean_over_classes(on: list[Victim], holds: list[Tensor]) -> float:
    """Returns the share of examples for which something holds, as the mean over the classes that occur.

    With rare classes it tells a classifier that withstands everything from one that always says the same.
    """
    true, held = torch.cat([victim.true for victim in on]), torch.cat(holds).float()
    return float(torch.stack([held[true == each].mean() for each in sorted(set(true.tolist()))]).mean())


def masking(on: list[Victim], head: str, ratio: float, steps: int, queries: int, *, norm: str, seed: int) -> list[Row]:
    """Returns the accuracies by which masked gradients would show, at one ratio.

    Source: Athalye, Carlini and Wagner 2018, section 3.1; Carlini et al. 2019.
    """

    def by_fgsm(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        record = Fooled(victim.logits_of(rows), victim.values[rows], victim.true[rows], budget)
        record.logits(fgsm(record.loss(), record.inputs, budget))
        return record.found

    def by_square(victim: Victim, rows: Tensor, budget: Budget, draws: torch.Generator) -> Tensor:
        record = Fooled(victim.logits_of(rows), victim.values[rows], victim.true[rows], budget)
        square(record.loss(margin), record.inputs, budget, queries=queries, generator=draws)
        return record.found

    tried: dict[str, tuple[Breaks, float]] = {
        "one step (FGSM)": (by_fgsm, ratio),
        f"{steps} steps (PGD)": (by_pgd(steps=steps), ratio),
        f"{5 * steps} steps": (by_pgd(steps=5 * steps), ratio),
        f"{steps} steps, 5 restarts": (by_pgd(steps=steps, restarts=5), ratio),
        f"without gradients (Square, {queries} queries)": (by_square, ratio),
        "noise as loud as the music (PGD, 0 dB)": (by_pgd(steps=steps), 0.0),
    }
    return [
        {"head": head, "check": name, "snr_db": at, UNDER: curve(on, head, name, breaks, [at], norm, seed)[0][UNDER]}
        for name, (breaks, at) in tried.items()
    ]


def verdicts(masks: list[Row], tolerance: float = 0.02) -> list[str]:
    """Returns a sentence for each head: which of the signs of masked gradients it shows, if any."""
    said = []
    for head in dict.fromkeys(row["head"] for row in masks):
        one, many, longer, again, black, loud = (row[UNDER] for row in masks if row["head"] == head)
        signs = [
            name
            for name, shown in (
                ("one step breaks more than many", one < many - tolerance),
                ("an attack without gradients breaks more than one with them", black < many - tolerance),
                ("five times the steps break much more, so the attack had not converged", longer < many - 5 * tolerance),
                ("restarts break much more", again < many - 5 * tolerance),
                ("some examples withstand noise as loud as the music", loud > tolerance),
            )
            if shown
        ]
        said.append(f"{head}: " + ("no sign of masked gradients" if not signs else "; ".join(signs)))
    return said
