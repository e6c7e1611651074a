"""Laws of the Transformer: causality, packing, cache, relative positions, tying, sizes, precision."""

from pathlib import Path

import pytest
import torch
import yaml

from etude.models.symbolic.attention import Packing, positions_in
from etude.models.symbolic.transformer import Transformer

FEATURES = {"position": 17, "voice": 5}
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 25 + [-1] * 5, [0] * 33 + [1] * 7])


def _model(**changes) -> Transformer:
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 96}
    model = Transformer(**(settings | {"feature_sizes": FEATURES} | changes))
    for parameter in model.parameters():  # larger than at the start, so that attention is far from uniform
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def _inputs(batch: int = 2, time: int = 40) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens_bt = torch.randint(0, 50, (batch, time), generator=generator)
    features = {name: torch.randint(0, n, (batch, time), generator=generator) for name, n in FEATURES.items()}
    return tokens_bt, features


def _crop(features: dict[str, torch.Tensor], rows: slice, times: slice) -> dict[str, torch.Tensor]:
    return {name: values[rows, times] for name, values in features.items()}


@pytest.mark.parametrize("fused", [True, False])
def test_no_token_sees_its_future(fused):
    model = _model(fused=fused)
    tokens_bt, features = _inputs()
    changed_bt = tokens_bt.clone()
    changed_bt[:, 20:] = (changed_bt[:, 20:] + 1) % 50
    before, after = model(tokens_bt, features=features), model(changed_bt, features=features)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert (before[:, 20:] - after[:, 20:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", [None, Packing.split, Packing.mask])
def test_packed_pieces_equal_one_by_one(fused, method):
    model = _model(fused=fused)
    tokens_bt, features = _inputs()
    packing = DOCUMENTS if method is None else method(DOCUMENTS)
    packed = model(tokens_bt, documents_bt=packing, positions_bt=positions_in(DOCUMENTS), features=features)
    for row, first, last in [(0, 0, 10), (0, 10, 35), (1, 0, 33), (1, 33, 40)]:
        rows, times = slice(row, row + 1), slice(first, last)
        alone = model(tokens_bt[rows, times], features=_crop(features, rows, times))
        torch.testing.assert_close(packed[rows, times], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("documents_bt", [None, DOCUMENTS])
def test_evaluation_equals_training_without_dropout(documents_bt):
    """On CPU they take different attention kernels."""
    model = _model()
    tokens_bt, features = _inputs()
    training = model(tokens_bt, documents_bt=documents_bt, features=features)
    with torch.no_grad():
        evaluation = model(tokens_bt, documents_bt=documents_bt, features=features)
    torch.testing.assert_close(training, evaluation, atol=1e-5, rtol=0)


def test_packed_gradients_equal_for_every_way_of_packing():
    tokens_bt, features = _inputs()
    gradients = []
    for fused, method in [(True, Packing.split), (False, Packing.split), (False, Packing.mask)]:
        model = _model(fused=fused)
        logits = model(tokens_bt, documents_bt=method(DOCUMENTS), positions_bt=positions_in(DOCUMENTS), features=features)
        logits[DOCUMENTS >= 0].logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for other in gradients[1:]:
        for ours, theirs in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5 * theirs.abs().max().item(), rtol=0)


def test_variable_length_attention_sees_what_the_mask_shows(monkeypatch):
    """The CUDA kernel's inputs, checked through a CPU function of the same interface."""
    from torch.nn.attention import varlen

    def reference(q, k, v, starts_q, starts_k, max_q, max_k, *, scale, window_size):
        assert scale == 1.0 and window_size == (-1, 0) and torch.equal(starts_q, starts_k) and max_q == max_k == 40  # of a row
        out = torch.empty_like(q)
        for first, last in zip(starts_q[:-1].tolist(), starts_q[1:].tolist(), strict=True):
            run = (x[first:last].transpose(0, 1)[None] for x in (q, k, v))
            attended = torch.nn.functional.scaled_dot_product_attention(*run, is_causal=True, scale=scale, enable_gqa=True)
            out[first:last] = attended[0].transpose(0, 1)
        return out

    monkeypatch.setattr(varlen, "varlen_attn", reference)
    model = _model()
    tokens_bt, features = _inputs()
    results = [
        model(tokens_bt, documents_bt=method(DOCUMENTS), positions_bt=positions_in(DOCUMENTS), features=features)
        for method in (Packing.variable, Packing.mask)
    ]
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("prompt, changes", [(1, {}), (7, {}), (7, {"qk_norm": False}), (7, {"fused": False})])
def test_cache_equals_full_forward_at_every_step(num_kv_heads, prompt, changes):
    model = _model(num_kv_heads=num_kv_heads, **changes)
    tokens_bt, features = _inputs()
    full = model(tokens_bt, features=features)
    cache = model.new_cache(2, 40)
    with torch.inference_mode():
        chunks = [slice(0, prompt), slice(prompt, prompt + 3)]  # a second chunk, as when a prompt comes in parts
        chunks += [slice(t, t + 1) for t in range(prompt + 3, 40)]
        for times in chunks:
            step = model(tokens_bt[:, times], features=_crop(features, slice(None), times), cache=cache)
            torch.testing.assert_close(step, full[:, times], atol=1e-5, rtol=0)
    assert (cache.step is not None) == model.fused  # the short path was taken where it exists
    with pytest.raises(ValueError, match="max_len=40 is full"):
        model(tokens_bt[:, :1], features=_crop(features, slice(None), slice(0, 1)), cache=cache)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 2])
def test_cache_in_bfloat16_equals_full_forward_to_its_rounding(batch):
    model = _model().bfloat16()
    tokens_bt, features = _inputs(batch)
    full, cache = model(tokens_bt, features=features), model.new_cache(batch)
    for time in range(40):
        now = slice(time, time + 1)
        step = model(tokens_bt[:, now], features=_crop(features, slice(None), now), cache=cache)
        assert (step - full[:, now]).abs().max() < 0.03 * full.abs().max()


@torch.inference_mode()
def test_cache_serves_a_model_whose_first_head_is_pruned():
    """Its queries and keys are rows of zeros, which the short path cannot normalise."""
    model = _model(num_kv_heads=4)
    model.blocks[0].attention.query_key.weight.view(2, 4, 16, 64)[:, 0] = 0.0
    tokens_bt, features = _inputs()
    full, cache = model(tokens_bt, features=features), model.new_cache(2)
    for time in range(10):
        now = slice(time, time + 1)
        step = model(tokens_bt[:, now], features=_crop(features, slice(None), now), cache=cache)
        torch.testing.assert_close(step, full[:, now], atol=1e-5, rtol=0)


def test_only_distances_between_positions_matter():
    model = _model().double()
    tokens_bt, features = _inputs()
    near = torch.arange(40).expand(2, 40)
    torch.testing.assert_close(
        model(tokens_bt, positions_bt=near, features=features),
        model(tokens_bt, positions_bt=near + 1000, features=features),
    )
    stretched = model(tokens_bt, positions_bt=near * 2, features=features)
    assert (stretched - model(tokens_bt, features=features)).abs().max() > 1e-2


def test_positions_start_anew_in_each_document():
    assert positions_in(torch.tensor([[0, 0, 1, 1, 1, -1], [0, 1, 1, 1, 1, 1]])).tolist() == [
        [0, 1, 0, 1, 2, 0],
        [0, 0, 1, 2, 3, 4],
    ]


def test_tied_weights_are_one_parameter():
    tied, untied = _model(), _model(tie_embeddings=False)
    assert tied.unembedding.weight is tied.embedding.weight
    assert untied.num_parameters() - tied.num_parameters() == 50 * 64
    assert set(untied.state_dict()) == set(tied.state_dict())


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}])
def test_checkpointed_activations_give_equal_gradients(changes):
    gradients = []
    for flag in (False, True):
        model = _model(checkpoint_activations=flag, **changes).train()
        tokens_bt, features = _inputs()
        torch.manual_seed(5)
        model(tokens_bt, features=features).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_bf16_autocast_trains_as_float32_does():
    """Loss curves of the same model on the same batches stay within 2 % of each other."""
    curves = []
    for fused, enabled in [(True, True), (False, False)]:
        model = _model(fused=fused, num_kv_heads=None, feature_sizes=None).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(2)
        losses = []
        for _ in range(60):
            start = torch.randint(0, 50, (8, 1), generator=generator)
            tokens_bt = (start + 7 * torch.arange(33)) % 50
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                logits = model(tokens_bt[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens_bt[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert curves[1][-1] < 0.1 * curves[1][0]
    assert (curves[0] - curves[1]).abs().max() < 0.02 * curves[1][0]


@pytest.mark.parametrize("size, low, high", [("tiny", 0.5, 2), ("small", 8, 13), ("base", 80, 130), ("large", 1000, 1500)])
def test_sizes_by_configuration_alone(size, low, high):
    settings = yaml.safe_load((Path(__file__).parents[3] / "conf" / "model" / f"{size}.yaml").read_text())
    assert settings.pop("_target_") == "etude.models.symbolic.transformer.Transformer" and settings.pop("_partial_")
    with torch.device("meta"):
        model = Transformer(vocab_size=512, **settings)
    dim, hidden, layers = settings["dim"], settings["hidden_dim"], settings["num_layers"]
    share = settings["num_kv_heads"] / settings["num_heads"]
    matrices = layers * (dim * dim * (2 + 2 * share) + 3 * dim * hidden)
    assert model.num_parameters() == matrices + 512 * dim + dim + layers * settings["num_heads"]
    assert low * 1e6 < model.num_parameters() < high * 1e6
    assert model.flops_per_token(1024) == 6 * (matrices + 512 * dim) + 6 * layers * 1024 * dim


def test_meta_device_model_can_be_made_real():
    with torch.device("meta"):
        model = Transformer(vocab_size=20, dim=32, num_layers=2, num_heads=2)
    model.to_empty(device="cpu").reset_parameters()
    loss = torch.nn.functional.cross_entropy(model(torch.arange(20)[None])[0], torch.arange(20))
    assert abs(loss.item() - torch.log(torch.tensor(20.0)).item()) < 0.1  # uniform before training


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 60, "num_heads": 8}, "dim=60 must be a multiple of 2"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
    ],
)
def test_impossible_shapes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        _model(**changes)


def test_missing_features_are_named():
    with pytest.raises(ValueError, match="feature_sizes"):
        _model()(torch.zeros(1, 3, dtype=torch.int64))
