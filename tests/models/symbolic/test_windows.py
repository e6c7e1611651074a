"""Laws of attention windows, and of the cache that keeps only the tokens of the window."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etude.models.symbolic import kernels, kv_cache
from etude.models.symbolic.attention import Packing, positions_in
from etude.models.symbolic.beam import beam_search
from etude.models.symbolic.contrastive import contrastive_search
from etude.models.symbolic.sampling import generate
from etude.models.symbolic.speculative import random_choice, speculative_sample
from etude.models.symbolic.transformer import Transformer
from tests.models.symbolic.test_searches import VOCAB, Few
from tests.models.symbolic.test_speculative import Forking

DOCUMENTS = torch.tensor([[0] * 10 + [1] * 25 + [-1] * 5, [0] * 33 + [1] * 7])
TOKENS = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))


def network(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 96}
    model = Transformer(**(settings | changes))
    for parameter in model.parameters():  # larger than at the start, so that attention is far from uniform
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


class Recomputing(nn.Module):
    """A model that reads the whole sequence for each token; its cache is the tokens."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model, self.unembed, self.rows = model, model.unembed, torch.zeros(0)

    def new_cache(self, batch: int, max_len: int) -> "Recomputing":
        self.rows = torch.zeros(batch, 0, dtype=torch.int64)
        return self

    def select(self, rows: Tensor, *, last: bool = False) -> None:
        self.rows = self.rows[rows]

    def hidden(self, tokens_bt: Tensor, *, features: Any, cache: Any) -> Tensor:
        self.rows = torch.cat((self.rows, tokens_bt), dim=1)
        return self.model.hidden(self.rows)[:, -tokens_bt.shape[1] :]

    def forward(self, tokens_bt: Tensor, **given: Any) -> Tensor:
        logits: Tensor = self.unembed(self.hidden(tokens_bt, **given))
        return logits


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("window", [40, 1000])
def test_a_window_as_long_as_the_sequence_changes_nothing(window, fused):
    assert torch.equal(network(window=window, fused=fused)(TOKENS), network(fused=fused)(TOKENS))


@pytest.mark.parametrize("window", [1, 2, 7])
def test_a_token_of_one_layer_sees_exactly_the_last_tokens(window):
    """So it equals the last token of a sequence of these alone, since only distances between positions matter."""
    found, without = network(num_layers=1, window=window)(TOKENS), network(num_layers=1)
    for place in range(40):
        alone = without(TOKENS[:, max(0, place - window + 1) : place + 1])[:, -1]
        torch.testing.assert_close(found[:, place], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_of_a_token_outside_the_window_is_zero(fused):
    model = network(num_layers=1, window=5, fused=fused)
    embeddings = model.embed(TOKENS[:1]).detach().requires_grad_()
    model(TOKENS[:1], embeddings_btd=embeddings)[0, 20].logsumexp(0).backward()
    size = embeddings.grad[0].abs().amax(-1)
    assert (size[16:21] > 1e-6).all() and not size[:16].any() and not size[21:].any()


def test_windows_of_some_layers_leave_the_others_whole():
    """The first token reaches the last one through the block without a window, and only through that."""
    for layers, reached in [(None, False), ([0, 1], False), ([1], True)]:
        model = network(window=4, window_layers=layers)
        embeddings = model.embed(TOKENS).detach().requires_grad_()
        model(TOKENS, embeddings_btd=embeddings)[:, -1].logsumexp(-1).sum().backward()
        assert bool(embeddings.grad[:, 0].any()) == reached
        assert not embeddings.grad[:, :33].any() or reached  # two windows of 4 reach 6 tokens back


@pytest.mark.parametrize("window", [3, 16])
def test_all_ways_of_packing_agree_in_values_and_gradients(window, monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 8)
    found = []
    for fused, method in [(True, Packing.split), (False, Packing.split), (False, Packing.mask)]:
        model = network(window=window, fused=fused)
        logits = model(TOKENS, documents_bt=method(DOCUMENTS), positions_bt=positions_in(DOCUMENTS))
        logits[DOCUMENTS >= 0].logsumexp(-1).sum().backward()
        found.append((logits.detach()[DOCUMENTS >= 0], [parameter.grad for parameter in model.parameters()]))
    with torch.no_grad():
        evaluation = network(window=window)(TOKENS, documents_bt=DOCUMENTS)[DOCUMENTS >= 0]
    torch.testing.assert_close(evaluation, found[0][0], atol=1e-5, rtol=0)
    for logits, gradients in found[1:]:
        torch.testing.assert_close(logits, found[0][0], atol=1e-5, rtol=0)
        for ours, theirs in zip(found[0][1], gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5 * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize("window", [1, 3, 5, 12])
def test_the_gradient_of_the_fused_kernel_agrees_with_finite_differences(window, monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 3)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(heads, 12, 2, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    ]  # fmt: skip
    assert torch.autograd.gradcheck(lambda q, k, v: kernels.causal_attention(q, k, v, lengths=(7, 1, 4), window=window), inputs)


def test_variable_length_attention_is_told_the_window(monkeypatch):
    from torch.nn.attention import varlen

    def reference(q, k, v, starts_q, starts_k, max_q, max_k, *, scale, window_size):
        assert window_size == (6, 0)  # tokens before each token and behind it
        return torch.zeros_like(q)

    monkeypatch.setattr(varlen, "varlen_attn", reference)
    network(window=7)(TOKENS, documents_bt=Packing.variable(DOCUMENTS))


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"fused": False}, {"num_kv_heads": 4}, {"window_layers": [1]}])
@pytest.mark.parametrize("window", [1, 6, 11, 40])
@pytest.mark.parametrize("products_from", [1, 1000])
@torch.inference_mode()
def test_the_rolling_cache_equals_the_full_forward(window, changes, products_from, monkeypatch):
    """Whether attention is computed by two matrix products or by PyTorch's kernel."""
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 4)
    monkeypatch.setattr(kv_cache, "PRODUCTS_FROM", products_from)
    model = network(window=window, **changes)
    full, cache = model(TOKENS), model.new_cache(2, 40)
    chunks = [slice(0, 3), slice(3, 9), *(slice(t, t + 1) for t in range(9, 22)), slice(22, 38), slice(38, 39), slice(39, 40)]
    for times in chunks:
        torch.testing.assert_close(model(TOKENS[:, times], cache=cache), full[:, times], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_rolling_cache_in_bfloat16_equals_the_full_forward_to_its_rounding():
    model = network(window=6).bfloat16()
    full, cache = model(TOKENS), model.new_cache(2, 40)
    for times in [slice(0, 9), *(slice(t, t + 1) for t in range(9, 40))]:
        assert (model(TOKENS[:, times], cache=cache) - full[:, times]).abs().max() < 0.03 * full.abs().max()


@pytest.mark.parametrize(
    "dtype, slots, contiguous",
    [(torch.float32, 1024, 2), (torch.float64, 1024, 2), (torch.float32, 10, 3), (torch.bfloat16, 1024, 3)],
)
def test_the_cache_is_laid_out_for_the_kernel_that_reads_it(dtype, slots, contiguous):
    """Also when rows are copied, which keeps what they hold."""
    cache = network().new_cache(2, slots, dtype=dtype)
    for rows in (None, [1, 0], [0, 0, 1]):
        if rows is not None:
            before = cache.keys[0].clone()
            cache.select(torch.tensor(rows))
            assert torch.equal(cache.keys[0], before[rows])
        assert all(buffer.stride(contiguous) == 1 and buffer.shape[1:] == (2, slots, 16) for buffer in cache.keys + cache.values)
        for buffer in cache.keys:
            buffer.copy_(torch.randn(buffer.shape))
        cache.length = slots


def test_the_cache_of_a_window_does_not_grow_with_the_length():
    model = network(window=16)
    assert model.new_cache(3, 16).num_bytes == model.new_cache(3, 16000).num_bytes == 2 * 2 * 3 * 2 * 16 * 16 * 4
    assert network(window=16, window_layers=[1]).new_cache(1, 160).num_bytes == 2 * 2 * (16 + 160) * 16 * 4


@pytest.mark.parametrize("products_from", [1, 1000])
@pytest.mark.parametrize("window", [4, 9, None])
def test_padded_rows_go_on_as_they_would_alone(window, products_from, monkeypatch):
    monkeypatch.setattr(kv_cache, "PRODUCTS_FROM", products_from)
    model, generator = network(window=window), torch.Generator()
    prompts = [TOKENS[0, :13], TOKENS[1, :5]]
    settings = {"decoder": None, "max_new_tokens": 20, "temperature": 0.0}
    alone = [generate(model, prompt[None], generator=generator, **settings)[0] for prompt in prompts]
    padded = torch.stack([prompts[0], torch.nn.functional.pad(prompts[1], (8, 0))])
    together = generate(model, padded, generator=generator, padding_b=torch.tensor([0, 8]), **settings)
    assert together == alone


@pytest.mark.parametrize("window", [2, 3])
def test_searches_that_copy_rows_find_what_recomputing_finds(window):
    torch.manual_seed(1)
    model = Transformer(vocab_size=VOCAB, dim=16, num_layers=2, num_heads=2, window=window).eval()
    model.unembedding.weight.data *= 12  # far from uniform
    prompt = torch.tensor([[1]])
    for search, rows, options in [(beam_search, 4, {"beams": 4}), (contrastive_search, 3, {"top_k": 3})]:
        found = [
            search(each, prompt, decoder=Few(rows, least=6, most=9), max_new_tokens=12, **options)
            for each in (model, Recomputing(model))
        ]
        assert found[0] == found[1]


def test_speculative_decoding_is_refused_beyond_the_window_and_works_within():
    torch.manual_seed(1)
    models = [Transformer(vocab_size=VOCAB, dim=16, num_layers=1, num_heads=2, window=12).eval() for _ in range(2)]
    choose, prompt = random_choice(torch.Generator().manual_seed(0)), torch.tensor([[1]])
    with pytest.raises(ValueError, match=r"takes tokens back, which a model with model\.window can't"):
        speculative_sample(*models, prompt, decoder=Forking(1), max_new_tokens=12, choose=choose)
    assert len(speculative_sample(*models, prompt, decoder=Forking(1), max_new_tokens=6, choose=choose)) > 2
    cache = models[0].new_cache(1, 20)
    models[0](torch.ones(1, 13, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="can't go back to 5 tokens"):
        cache.rewind(5)


def test_attention_maps_show_the_window():
    model = network(window=3)
    angles = model._rotary(TOKENS, None, None, torch.float32)
    for weights in model.blocks[0].attention.maps(model.embed(TOKENS), angles):
        inside = torch.ones(40, 40).tril().triu(-2).bool()
        assert not weights[:, ~inside].any() and (weights[:, inside] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 40))


def test_attention_maps_of_a_mask_are_those_of_its_pieces():
    model = network(window=3)
    documents_bt = torch.tensor([[0] * 12 + [1] * 28] * len(TOKENS))
    x_btd, angles = model.embed(TOKENS), model._rotary(TOKENS, None, None, torch.float32)
    found = [model.blocks[0].attention.maps(x_btd, angles, packing=kind(documents_bt)) for kind in (Packing.mask, Packing.split)]
    assert len(found[0]) == 2 * len(TOKENS)
    for masked, split in zip(*found, strict=True):
        torch.testing.assert_close(masked, split)


def test_the_window_limits_the_operations_of_attention():
    whole, windowed = network(), network(window=10)
    assert windowed.flops_per_token(10) == whole.flops_per_token(10)
    seen = sum(min(place + 1, 10) for place in range(40)) / 40  # on average
    assert windowed.flops_per_token(40) - whole.flops_per_token(0) == pytest.approx(2 * 12 * 64 * seen, rel=0.06)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 5, "causal": False}, r"needs model\.causal=true"),
        ({"window_layers": [0]}, r"has no effect without model\.window"),
        ({"window": 5, "window_layers": [2]}, "must name blocks from 0 to 1"),
        ({"window": 5, "window_layers": []}, "must name blocks from 0 to 1"),
    ],
)
def test_windows_that_contradict_other_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)
