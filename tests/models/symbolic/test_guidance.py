"""Guidance: the logits with and without labels are those of the model, whatever stands in front of the rows."""

from typing import Any

import pytest
import torch

from etude.models.symbolic.guidance import Guided
from etude.models.symbolic.sampling import PAD, generate
from etude.models.symbolic.transformer import Transformer

BOS, VOCAB = 1, 24


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    network = Transformer(vocab_size=VOCAB, dim=16, num_layers=2, num_heads=2, feature_sizes={"voice": 3}).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8)  # far from uniform
    return network


def features(tokens_bt: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"voice": torch.where(tokens_bt > 8, tokens_bt % 3, 0)}


def alone(model: Transformer, row: list[int]) -> torch.Tensor:
    tokens = torch.tensor([row])
    logits: torch.Tensor = model(tokens, features=features(tokens))[0, -1]
    return logits


@torch.inference_mode()
def test_logits_are_those_with_labels_and_what_labels_change(model: Transformer) -> None:
    controls, weight = [5, 6, 7], 1.5
    bodies = [[9, 12, 20, 11], [14, 10]]
    rows = [[PAD] * (4 - len(body)) + [BOS, *controls, *body] for body in bodies]
    guided = Guided(model, weight=weight, num_controls=len(controls))
    cache: Any = guided.new_cache(2, 16)
    cache.pad(torch.tensor([0, 2]))
    tokens = torch.tensor(rows)
    found = guided(tokens, features=features(tokens), cache=cache)[:, -1]
    for step in range(3):
        for row, body in enumerate(bodies):
            conditional, free = alone(model, [BOS, *controls, *body]), alone(model, [BOS, *body])
            assert torch.allclose(found[row], (1 + weight) * conditional - weight * free, atol=1e-4)
        following = torch.tensor([[13 + step], [17 + step]])
        bodies = [[*body, int(token)] for body, token in zip(bodies, following, strict=True)]
        found = guided(following, features=features(following), cache=cache)[:, -1]


def test_without_weight_samples_are_those_of_the_model(model: Transformer) -> None:
    def drawn(network: torch.nn.Module) -> list[list[int]]:
        free = Featured(network)
        return generate(free, torch.tensor([[BOS, 5, 9]] * 3), decoder=None, max_new_tokens=12, generator=torch.manual_seed(4))

    assert drawn(Guided(model, weight=0.0, num_controls=1)) == drawn(model)
    assert drawn(Guided(model, weight=4.0, num_controls=1)) != drawn(model)


class Featured(torch.nn.Module):
    """Gives a network the features of its tokens."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def new_cache(self, *shape: int) -> Any:
        return self.network.new_cache(*shape)

    def forward(self, tokens_bt: torch.Tensor, *, cache: Any, **_: Any) -> Any:
        return self.network(tokens_bt, features=features(tokens_bt), cache=cache)
