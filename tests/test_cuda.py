"""Laws that need a GPU: its kernels compute what a CPU computes. `pytest --accelerator gpu` trains in other tests on it, too."""

from typing import Any

import pytest
import torch
from torch import Tensor

from etude.models.symbolic.attention import Packing, positions_in
from etude.models.symbolic.transformer import Transformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 25 + [-1] * 5, [0] * 33 + [1] * 7])
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "grouped heads": {"num_kv_heads": 2}, "window": {"window": 8}, "bidirectional": {"causal": False},
    "checkpointed": {"checkpoint_activations": True},
}  # fmt: skip


def network(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(**{"vocab_size": 50, "dim": 64, "num_layers": 3, "num_heads": 4, "hidden_dim": 96, **changes})
    for parameter in model.parameters():  # larger than at the start, so that attention is far from uniform
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.train()


def tokens() -> Tensor:
    return torch.randint(0, 50, DOCUMENTS.shape, generator=torch.Generator().manual_seed(1))


def computed(model: Transformer, device: torch.device, packing: Tensor | Packing, **autocast: Any) -> list[Tensor]:
    """The logits of real tokens, then the gradient of each parameter, in float32 on the CPU."""
    model = model.to(device)
    model.zero_grad()
    real = (DOCUMENTS >= 0).to(device)
    with torch.autocast(device.type, **autocast):
        logits = model(tokens().to(device), documents_bt=packing, positions_bt=positions_in(DOCUMENTS).to(device))[real]
    logits.float().square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [x.detach().float().cpu() for x in (logits, *gradients)]


def far(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative distance of two lists of tensors."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_that_of_the_cpu(kind: str) -> None:
    expected = computed(network(**KINDS[kind]), torch.device("cpu"), DOCUMENTS, enabled=False)
    found = computed(network(**KINDS[kind]), CUDA, DOCUMENTS.to(CUDA), enabled=False)
    assert far(found, expected) < 1e-4


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_for_packed_pieces_in_bfloat16_is_as_near_as_a_mask(kind: str, compiled: bool) -> None:
    exact = computed(network(**KINDS[kind]), torch.device("cpu"), DOCUMENTS, enabled=False)
    documents_bt = DOCUMENTS.to(CUDA)
    assert Packing.choose(documents_bt, dtype=torch.bfloat16).offsets is not None
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    masked = Packing.mask(documents_bt, causal=KINDS[kind].get("causal", True))
    error_of_mask = far(computed(network(**KINDS[kind]), CUDA, masked, **half), exact)
    error = far(computed(network(**KINDS[kind], compiled=compiled), CUDA, documents_bt, **half), exact)
    assert error < max(0.05, 2 * error_of_mask)


def test_a_cache_gives_the_logits_of_the_whole_piece() -> None:
    model = network(window=8, window_layers=[0]).to(CUDA).eval()
    tokens_bt = tokens().to(CUDA)
    with torch.inference_mode():
        whole = model(tokens_bt)
        cache = model.new_cache(2, tokens_bt.shape[1])
        parts = [model(tokens_bt[:, :7], cache=cache)]
        parts += [model(tokens_bt[:, t : t + 1], cache=cache) for t in range(7, tokens_bt.shape[1])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_equal_blocks_are_compiled_once_for_any_number_of_pieces() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = network(num_layers=12, compiled=True).to(CUDA)
    for pieces in (2, 3, 5, 8):
        documents_bt = (torch.arange(64) * pieces // 64)[None].to(CUDA)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            model(torch.randint(0, 50, (1, 64), device=CUDA), documents_bt=documents_bt).float().mean().backward()
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] <= 2 and not counted["graph_break"]
