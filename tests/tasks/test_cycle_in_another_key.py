"""task.cycle_transposed: what is exchanged in the same way in every key is undone by a transposed cycle, anything else is not."""

import torch
from torch import Tensor, nn

from tests.tasks.test_style_transfer import CONTRACT, batch, statistics, task


class Exchange(nn.Module):
    """Exchanges two bands with two others: another note for each of two notes, and its own inverse."""

    def forward(self, mel_nmf: Tensor, *_: object) -> Tensor:
        order = list(range(16))
        order[3], order[4], order[9], order[10] = 9, 10, 3, 4
        return mel_nmf[:, order]


def cycle(generator: nn.Module | None, semitones: float | None) -> float:
    """The cycle loss in nats, with `generator` in both directions; None: generators that change nothing."""
    made = task(
        styles=("folk", "rock"), statistics=statistics(2)[:1].expand(2, -1, -1), input_noise=0.0, cycle_transposed=semitones
    )
    if generator is not None:
        made.generators = nn.ModuleList([generator, generator])
    torch.manual_seed(3)
    x = made.bands.standardise(CONTRACT.denormalise(batch(2, pieces=8)["mel"][0]), torch.zeros(8, dtype=torch.long))
    source, target = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    fake = made._generate(x, source, target, None)
    return made._cycle({"generator/cycle"}, x, fake, source, target)["generator/cycle"].item()


def test_only_what_is_the_same_in_every_key_is_undone() -> None:
    assert cycle(None, None) < 1e-5 and cycle(Exchange(), None) < 1e-5
    assert cycle(None, 5.0) < 1e-5 < 0.01 < cycle(Exchange(), 5.0)


def test_every_loss_is_finite_and_repeats() -> None:
    made = task(cycle_transposed=4.0)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(made.losses(batch()))
    assert all(torch.isfinite(term) for term in found[0].values())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["generator/cycle"] != task().losses(batch())["generator/cycle"]
