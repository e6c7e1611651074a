"""Whether changes that break one model also break another one."""

from __future__ import annotations

from typing import Any

import torch

from etude.attacks.gradient import pgd
from etude.attacks.objectives import Fooled
from etude.core.batch import Batch
from etude.evaluation.robustness.examples import Victim, attacked, check_classifier
from etude.evaluation.robustness.tables import Row

STEPS = 20


def other_model(task: Any, batches: list[Batch], heads: list[str], source: tuple[Any, Any, Any]) -> Any:
    """Returns the model of the other run, for `transferred`.

    Args: source: (the other run, find, load), see `etude.run.parts.build_technique`.

    Raises: ValueError if the other model has other inputs or heads, or if the inputs are embeddings, which each model has of its
        own.
    """
    name, find, load = source
    if find is None or load is None:
        raise ValueError(f"robustness.transfer_from={name} needs a way to load that run; call it by evaluate.py")
    path = find(name, "robustness.transfer_from")
    if Victim(task, batches[0], heads[0]).name == "embeddings":
        raise ValueError(
            f"robustness.transfer_from={name}: embeddings are inputs of one model alone, so a change of them can't be tried on "
            "another; give a classifier of mels, or leave it out"
        )
    other = load(path)[0].to(task.device)
    if type(other) is not type(task) or other.labels != task.labels or other.contract != task.contract:
        raise ValueError(f"robustness.transfer_from={name}: {path} has other heads, classes or mels; give a run on the same data")
    check_classifier(other)
    return other


def transferred(
    task: Any, other: Any, batches: list[Batch], heads: list[str], ratios: list[float], norm: str, *, seed: int
) -> list[Row]:
    """Returns a row for each head, ratio and direction: the accuracy on examples that PGD changed against the other model."""
    rows = []
    with attacked(other):
        for head in heads:
            for ratio in ratios:
                counts = torch.zeros(2)
                total = 0
                for batch in batches:
                    mine, theirs = Victim(task, batch, head), Victim(other, batch, head)
                    total += len(mine.true)
                    for place, (made_on, tried_on) in enumerate(((theirs, mine), (mine, theirs))):
                        budget = made_on.budget(ratio, norm)
                        record = Fooled(made_on.logits_of(made_on.everything), made_on.values, made_on.true, budget)
                        draws = torch.Generator(made_on.values.device).manual_seed(seed)
                        moved = pgd(record.loss(), made_on.values, budget, steps=STEPS, generator=draws)
                        with torch.no_grad():
                            said = tried_on.logits_of(tried_on.everything)(moved).argmax(1)
                        counts[place] += int((said == tried_on.true).sum())
                for place, direction in enumerate(("from the other model to this one", "from this model to the other one")):
                    rows.append({"head": head, "direction": direction, "snr_db": ratio, "accuracy": float(counts[place]) / total})
    return rows
