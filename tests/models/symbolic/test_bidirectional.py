"""A Transformer that is not causal: it sees the whole piece, no other piece, and can't generate; given embeddings."""

import pytest
import torch

from etude.models.symbolic.attention import Packing, positions_in
from etude.models.symbolic.transformer import Transformer
from tests.models.symbolic.test_transformer import DOCUMENTS, _inputs, _model

WAYS = [(True, None), (False, None), (True, Packing.split), (False, lambda documents: Packing.mask(documents, causal=False))]


@pytest.mark.parametrize("fused", [True, False])
def test_the_past_changes_with_the_future(fused: bool) -> None:
    model = _model(fused=fused, causal=False)
    tokens_bt, features = _inputs()
    changed_bt = tokens_bt.clone()
    changed_bt[:, 20:] = (changed_bt[:, 20:] + 1) % 50
    before, after = model(tokens_bt, features=features), model(changed_bt, features=features)
    assert (before - after).abs().amax(-1).min() > 1e-3  # every token, also those before 20


@pytest.mark.parametrize(("fused", "method"), WAYS)
def test_other_documents_change_nothing(fused: bool, method) -> None:
    model = _model(fused=fused, causal=False)
    tokens_bt, features = _inputs()
    packing = DOCUMENTS if method is None else method(DOCUMENTS)
    packed = model(tokens_bt, documents_bt=packing, positions_bt=positions_in(DOCUMENTS), features=features)
    for row, first, last in [(0, 0, 10), (0, 10, 35), (1, 0, 33), (1, 33, 40)]:
        rows, times = slice(row, row + 1), slice(first, last)
        alone = model(tokens_bt[rows, times], features={name: values[rows, times] for name, values in features.items()})
        torch.testing.assert_close(packed[rows, times], alone, atol=1e-5, rtol=0)


def test_reversed_rows_give_reversed_outputs_where_positions_say_so() -> None:
    """Attention in both directions knows of order by positions alone: turned around in time, it is the same network."""
    model = _model(causal=False)
    tokens_bt, features = _inputs()
    positions_bt = torch.arange(40).expand(2, 40)
    forth = model(tokens_bt, positions_bt=positions_bt, features=features)
    turned = {name: values.flip(1) for name, values in features.items()}
    back = model(tokens_bt.flip(1), positions_bt=positions_bt.flip(1), features=turned)
    torch.testing.assert_close(forth, back.flip(1), atol=1e-5, rtol=0)


def test_attention_maps_see_both_ways() -> None:
    maps = {}
    for causal in (True, False):
        model = _model(causal=causal, feature_sizes=None)
        seen = {}
        attention = model.blocks[0].attention
        record = lambda _, args, kwargs, seen=seen: seen.update(args=args, kwargs=kwargs)  # noqa: E731
        attention.register_forward_pre_hook(record, with_kwargs=True)
        model(_inputs()[0])
        maps[causal] = attention.maps(*seen["args"], **seen["kwargs"])[0]
        torch.testing.assert_close(maps[causal].sum(-1), torch.ones(4, 40))
    assert not maps[True].triu(1).any()
    assert (maps[False] > 0).all()


def test_it_can_not_generate() -> None:
    model = _model(causal=False, feature_sizes=None)
    with pytest.raises(ValueError, match="causal=false can't generate"):
        model.new_cache(2)
    cache = _model(feature_sizes=None).new_cache(2)
    with pytest.raises(ValueError, match="causal=false can't generate"):
        model(_inputs()[0], cache=cache)


def test_attention_of_both_directions_costs_twice_as_much() -> None:
    sizes = {"vocab_size": 50, "dim": 64, "num_layers": 2}
    causal, both = (Transformer(**sizes, causal=causal) for causal in (True, False))
    assert both.flops_per_token(100) - both.flops_per_token(0) == 2 * (causal.flops_per_token(100) - causal.flops_per_token(0))


@pytest.mark.parametrize("fused", [True, False])
def test_given_embeddings_take_the_place_of_the_tokens_own(fused: bool) -> None:
    model = _model(fused=fused)
    tokens_bt, features = _inputs()
    own = model(tokens_bt, documents_bt=DOCUMENTS, features=features)
    given_btd = model.embed(tokens_bt).detach().requires_grad_()
    same = model(torch.zeros_like(tokens_bt), documents_bt=DOCUMENTS, features=features, embeddings_btd=given_btd)
    assert torch.equal(own, same)
    same[0, 20].sum().backward()  # of the second document of the row, 10 to 34
    reached = given_btd.grad.abs().sum(-1) > 0
    assert reached[0, 10:21].all() and not reached[0, :10].any() and not reached[0, 21:].any() and not reached[1].any()
