"""Adapters: nothing changes at first, only they learn, the merged weights are those that were trained with, all resumes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etude.core.adapters import LowRank, adaptable_layers, adapters_of
from etude.core.phases import rate_factors
from etude.core.technique import Composition
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.guards.early_stopping import EarlyStopping
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.grow_layers import GrowLayers
from etude.techniques.weights.lora import Lora
from tests.songs import write_songs
from tests.tasks.test_style_transfer import task as style_transfer
from tests.test_composition import fit, music
from tests.toys import PairsData, ToyGan, same, trainer


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    return {"rank": 1} if kind == "gan" else {"rank": 2}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("lora") / "songs")


def model(songs: Path, *, layers: int = 2) -> tuple[LanguageModel, Any]:
    torch.manual_seed(0)
    data = music(songs)
    network = partial(Transformer, dim=16, num_layers=layers, num_heads=2, dropout=0.0)
    return LanguageModel(model=network, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2)), data


def set_up(task: Any, folder: Path, technique: Lora) -> Any:
    technique.setup(trainer(folder, max_steps=4), task, "fit")
    return task


def gan(folder: Path, **options: Any) -> ToyGan:
    torch.manual_seed(0)
    return set_up(ToyGan(noise=0.0), folder, Lora(**{"rank": 1, **options}))


def test_at_first_the_function_is_that_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare, adapted, x = ToyGan(noise=0.0), gan(tmp_path), torch.randn(5, 8)
    for name in ("ab", "ba", "da", "db"):
        assert torch.equal(getattr(bare, name)(x), getattr(adapted, name)(x))
    assert all(not part.b.any() and part.a.any() for part in adapters_of(adapted).values())


def test_the_weight_is_w_plus_alpha_over_r_b_a() -> None:
    layer, w = LowRank(torch.zeros(3, 4), rank=2, alpha=6.0, draws=torch.Generator().manual_seed(0)), torch.randn(3, 4)
    assert layer.a.shape == (2, 4) and layer.b.shape == (3, 2) and layer.a.abs().max() <= 0.5  # 1 / sqrt(4)
    nn.init.normal_(layer.b)
    exact = layer(w)
    assert torch.allclose(exact, w + 6.0 / 2 * (layer.b @ layer.a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(w), exact)


def test_the_gradients_of_a_and_b_are_those_of_the_weight_projected(tmp_path: Path) -> None:
    """dL/dB = s G A' and dL/dA = s B' G with G the gradient of the whole weight: what the paper's form h = Wx + s B A x gives."""
    adapted, x = gan(tmp_path, alpha=3.0), torch.randn(5, 8)
    layer = adapted.ab[0]
    part = adapters_of(adapted)["ab.0"]
    nn.init.normal_(part.b)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().requires_grad_()
    torch.nn.functional.linear(x, weight, layer.bias).square().sum().backward()
    assert weight.grad is not None
    assert torch.allclose(part.b.grad, 3.0 * weight.grad @ part.a.T, atol=1e-4)
    assert torch.allclose(part.a.grad, 3.0 * part.b.T @ weight.grad, atol=1e-4)
    assert layer.parametrizations.weight.original.grad is None and layer.bias.grad is None


def test_only_adapters_and_what_is_asked_for_change(tmp_path: Path, songs: Path) -> None:
    task, data = model(songs)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    technique = Lora(rank=2, modules=["*.attention.*"], also_train=["model.gain"])
    trainer(tmp_path, max_steps=3, callbacks=[technique]).fit(task, data)
    assert {name.rsplit(".", 1)[1] for name in adapters_of(task)} == {"query_key", "value", "output"}
    assert len(adapters_of(task)) == 6
    after = task.state_dict()
    assert not torch.equal(before["model.gain"], after["model.gain"])
    for name, value in before.items():
        kept = after.get(name, after.get(name.replace(".weight", ".parametrizations.weight.original")))
        assert name == "model.gain" or torch.equal(value, kept), name
    assert all(part.b.any() for part in adapters_of(task).values())
    optimizer = task.build_optimizer()
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for part in adapters_of(task).values() for p in part.parameters()
    ) + len(before["model.gain"])


def test_a_checkpoint_computes_what_training_did_without_adapters(tmp_path: Path, songs: Path) -> None:
    """The merged weights are those of the forward pass, bit for bit."""
    task, data = model(songs)
    run = trainer(tmp_path, max_steps=4, callbacks=[Lora(rank=2)])
    run.fit(task, data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    plain, _ = model(songs)
    plain.load_state_dict(saved["state_dict"])
    batch = next(iter(data.val_dataloader()))
    task.eval(), plain.eval()
    assert torch.equal(task.logits(batch), plain.logits(batch))
    first, _ = model(songs)
    assert not torch.equal(first.eval().logits(batch), plain.logits(batch))
    with torch.inference_mode():  # the fast path of sampling copies the weights
        one, other = (each.sample(num_samples=1, max_new_tokens=24, seed=3)[0] for each in (task, plain))
    assert [t.notes.numpy()["pitch"].tolist() for t in one.tracks] == [t.notes.numpy()["pitch"].tolist() for t in other.tracks]


def test_an_average_is_merged_from_averages(tmp_path: Path, songs: Path) -> None:
    ran = fit(tmp_path, lambda: model(songs), [Lora(rank=2), Ema(decay=0.9, every=1)], steps=4)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    average, layer = ran["callbacks"]["Ema"]["average"], "model.blocks.0.attention.value"
    w, a, b = (average[f"{layer}.parametrizations.weight.{part}"] for part in ("original", "0.a", "0.b"))
    assert torch.allclose(saved["state_dict"][f"{layer}.weight"], w + 16 / 2 * b @ a, atol=1e-6)
    assert torch.equal(saved["state_dict"]["model.gain"], average["model.gain"])
    assert not any("parametrizations" in name for name in saved["state_dict"])


def test_a_run_goes_on_only_with_the_adapters_that_it_has(tmp_path: Path, songs: Path) -> None:
    with_them = [Lora(rank=2)]
    fit(tmp_path / "half", lambda: model(songs), with_them, steps=6, kill_at=3)
    whole = fit(tmp_path / "whole", lambda: model(songs), [Lora(rank=2)], steps=6)
    rest = fit(tmp_path / "rest", lambda: model(songs), [Lora(rank=2)], steps=6, resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["saved"], rest["saved"]) and same(whole["trained"], rest["trained"])
    fit(tmp_path / "bare", lambda: model(songs), [], steps=6, kill_at=3)
    for start, technique in (("half", []), ("half", [Lora(rank=4)]), ("half", [Lora(rank=2, alpha=1.0)]), ("bare", with_them)):
        with pytest.raises(ValueError, match=r"give the technique\.lora options of its run, or start a new run from its weights"):
            fit(tmp_path / "no", lambda: model(songs), technique, steps=6, resume=tmp_path / start / "last.ckpt")


def test_stages_averages_and_the_best_weights_go_with_adapters_in_any_order(tmp_path: Path, songs: Path) -> None:
    def together() -> list[Any]:
        phases = [{"name": "one", "max_steps": 3, "frozen": ["model.blocks.0"]}, {"name": "two", "layer_decay": 0.5}]
        return [Lora(rank=2), Stages(stages=phases), Ema(decay=0.9, every=1), EarlyStopping(patience=1, min_delta=9.0)]

    whole = fit(tmp_path / "whole", lambda: model(songs), together(), steps=12)
    other = fit(tmp_path / "other", lambda: model(songs), together()[::-1], steps=12)
    fit(tmp_path / "half", lambda: model(songs), together(), steps=12, kill_at=2)
    rest = fit(tmp_path / "rest", lambda: model(songs), together(), steps=12, resume=tmp_path / "half" / "last.ckpt")
    for again in (other, rest):
        assert same(whole["trained"], again["trained"]) and same(whole["saved"], again["saved"])
    saved = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)  # ended early, with the best weights for sampling
    assert saved["global_step"] == 9 and not any("parametrizations" in name for name in saved["state_dict"])
    best, layer = saved["callbacks"]["EarlyStopping"]["weights"], "model.blocks.1.feed_forward.up"
    w, a, b = (best[f"{layer}.parametrizations.weight.{part}"] for part in ("original", "0.a", "0.b"))
    assert torch.allclose(saved["state_dict"][f"{layer}.weight"], w + 8.0 * b @ a, atol=1e-6)


def test_a_tied_output_is_left_out_and_layers_keep_their_rates(tmp_path: Path, songs: Path) -> None:
    task, _ = model(songs)
    assert "model.unembedding" not in adaptable_layers(task) and len(adaptable_layers(task)) == 12
    set_up(task, tmp_path, Lora(rank=2, also_train=["embeddings"]))
    task.lr_factors = rate_factors(task, 1.0, 0.5)
    rates = {group["lr"] / 1e-2: group["params"] for group in task.build_optimizer().param_groups}
    depth = {id(p): name for name, p in task.named_parameters()}
    assert set(rates) == {1.0, 0.5, 0.25}
    assert all(".blocks.1." in depth[id(p)] for p in rates[1.0]) and all(".blocks.0." in depth[id(p)] for p in rates[0.5])
    assert all("embedding" in depth[id(p)] for p in rates[0.25])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "technique.lora.rank is 0, must be at least 1"),
        ({"alpha": 0}, "technique.lora.alpha is 0, must be above 0"),
        ({"modules": []}, r"technique.lora.modules is \[\], must be a list of patterns"),
        ({"modules": "*"}, r"technique.lora.modules is '\*', must be a list"),
        ({"also_train": "gain"}, "technique.lora.also_train is 'gain', must be a list"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Lora(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 17}, "rank is 17, but model.blocks.0.attention.query_key of LanguageModel has rank 16 at most"),
        ({"modules": ["*.key"]}, r"modules has '\*.key', which fits no linear layer of LanguageModel .*there are model.blocks"),
        ({"modules": ["*", "*unembedding"]}, r"modules has '\*unembedding', which fits no linear layer"),
        ({"also_train": ["gain"]}, "also_train has 'gain', which begins no parameter name of LanguageModel"),
    ],
)
def test_what_the_model_lacks_is_refused(tmp_path: Path, songs: Path, options: dict[str, Any], told: str) -> None:
    task, _ = model(songs)
    with pytest.raises(ValueError, match=told):
        set_up(task, tmp_path, Lora(**options))


def test_what_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    class Bare(ToyGan):
        def __init__(self) -> None:
            super().__init__()
            self.ab = self.ba = self.da = self.db = nn.Identity()

    with pytest.raises(ValueError, match="technique lora needs linear layers, and Bare has none"):
        set_up(Bare(), tmp_path, Lora())
    with pytest.raises(ValueError, match="'grow_layers' and 'lora' both claim the weights with which the layers start"):
        Composition([Lora(), GrowLayers()])
    run = trainer(tmp_path, max_steps=2)
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(ValueError, match="technique lora adapts whole weights, but trainer=fsdp shards those of ToyGan"):
        Lora().setup(run, ToyGan(), "fit")


def test_the_players_of_a_gan_learn_apart(tmp_path: Path) -> None:
    task = ToyGan()
    trainer(tmp_path, max_steps=3, callbacks=[Lora(rank=1)]).fit(task, PairsData())
    assert len(adapters_of(task)) == 8 and all(part.b.any() for part in adapters_of(task).values())
    groups = task.build_optimizer().param_groups
    assert {group["player"]: group["lr"] for group in groups} == {"generator": 2e-4, "discriminator": 1e-4}


def test_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = gan(tmp_path), gan(tmp_path), gan(tmp_path, seed=1)
    pairs = [adapters_of(each)["ab.0"].a for each in (first, again, other)]
    assert torch.equal(pairs[0], pairs[1]) and not torch.equal(pairs[0], pairs[2])


def test_style_transfer_has_layers_to_adapt_or_says_no(tmp_path: Path) -> None:
    made = style_transfer()
    layers: dict[str, Tensor] = {name: each.weight for name, each in adaptable_layers(made).items()}
    if layers:
        set_up(made, tmp_path, Lora(rank=min(min(value.shape) for value in layers.values())))
        assert set(adapters_of(made)) == set(layers)
    else:
        with pytest.raises(ValueError, match="technique lora needs linear layers"):
            set_up(made, tmp_path, Lora())
