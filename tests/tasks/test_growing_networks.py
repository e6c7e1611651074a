"""Networks that grow with the phases of a run: what old parts keep, who reads which piece, resuming, refusals."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from etude.core.task import Task
from etude.evaluation.scores import split_likelihood
from etude.models.symbolic.expandable import ExpandableTransformer
from etude.models.symbolic.growing import Grows
from etude.models.symbolic.progressive import ProgressiveTransformer
from etude.models.symbolic.transformer import Transformer
from etude.tasks.classifier import Classifier
from etude.tasks.language_model import LanguageModel
from etude.techniques.continual.ewc import Ewc
from etude.techniques.continual.forgetting import Forgetting
from etude.techniques.continual.meta_replay import MetaReplay
from etude.techniques.continual.packnet import PackNet
from etude.techniques.continual.replay import Replay
from etude.techniques.continual.si import Si
from etude.techniques.optim.stages import Stages
from etude.techniques.weights.ema import Ema
from etude.techniques.weights.grow_layers import GrowLayers
from etude.techniques.weights.grow_width import GrowWidth
from etude.techniques.weights.lora import Lora
from etude.techniques.weights.prune import Prune
from etude.techniques.weights.swa import Swa
from tests.songs import write_songs
from tests.test_composition import fit, music
from tests.toys import same, trainer

SMALL: dict[str, Any] = {"dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
NETWORKS: dict[str, Callable[..., Any]] = {
    "progressive": partial(ProgressiveTransformer, **SMALL),
    "expandable": partial(ExpandableTransformer, **SMALL, threshold=0, units=8),
}
GENRES = ("classical", "folk")


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("growing") / "songs")


def build(songs: Path, network: Any, **options: Any) -> tuple[LanguageModel, Any]:
    torch.manual_seed(0)
    data = music(songs, **options)
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    return LanguageModel(model=network, tokenizer=data.tokenizer, optimizer=optimizer, seed=1), data


def in_phases(steps: int = 4) -> Stages:
    """Three phases: classical, folk, classical."""
    named = [{"name": name, "data": {"genre": name}, "max_steps": steps} for name in GENRES]
    return Stages(stages=[*named, {"name": "again", "data": {"genre": "classical"}}])


def batch(songs: Path, network: Any) -> tuple[LanguageModel, Any]:
    task, data = build(songs, network)
    return task, next(iter(data.loader_of("train", data.held_out("train")["tokens"] > 0)))


def grown(songs: Path, name: str, phases: int = 3) -> tuple[LanguageModel, Any]:
    """A task whose network has a part for each phase, with random weights everywhere, and a batch for it."""
    task, held = batch(songs, NETWORKS[name])
    for number in range(1, phases):
        task.phases.add_modules(task, {"phase": str(number), "after": str(number - 1), "grown": True})
        for p in task.parameters():
            torch.nn.init.normal_(p, std=0.2) if p.requires_grad else None
    return task.eval(), held


@pytest.mark.parametrize("name", NETWORKS)
def test_before_it_grows_it_is_a_transformer(songs: Path, name: str) -> None:
    plain, held = batch(songs, partial(Transformer, **SMALL))
    other, _ = batch(songs, NETWORKS[name])
    assert same(plain.state_dict(), other.state_dict())
    assert torch.equal(plain.eval().logits(held), other.eval().logits(held))


class Watch(Ema):
    """An average of the weights that notes, whenever a phase begins, what the network computes and its weights."""

    def __init__(self, held: Any) -> None:
        super().__init__(decay=0.5, every=1)
        self.held, self.before, self.after, self.weights = held, [], [], []

    def outputs(self, task: Any) -> torch.Tensor:
        was = task.training
        task.eval()
        with torch.no_grad():
            logits: torch.Tensor = task.logits(self.held)
        task.train(was)
        return logits

    def on_phase_end(self, task: Any) -> None:
        super().on_phase_end(task)
        self.before.append(self.outputs(task))
        self.weights.append({name: p.detach().clone() for name, p in task.named_parameters()})

    def on_phase_start(self, task: Any) -> None:
        super().on_phase_start(task)
        self.after.append(self.outputs(task))


@pytest.mark.parametrize("name", NETWORKS)
def test_old_parts_do_not_move_and_compute_what_they_computed(songs: Path, tmp_path: Path, name: str) -> None:
    _, held = batch(songs, NETWORKS[name])
    watch, (task, data) = Watch(held), build(songs, NETWORKS[name])
    run = trainer(tmp_path, max_steps=24, callbacks=[in_phases(), watch], limit_val_batches=0)
    run.fit(task, data)
    assert task.model.parts.newest == 2 and task.phases.added_modules[1]["after"] == "folk"
    for phase, weights in enumerate(watch.weights):
        frozen = {key: p for key, p in task.named_parameters() if key in weights and not p.requires_grad}
        newer = {key for key in weights if key not in watch.weights[0]}
        assert frozen.keys() >= (weights.keys() if phase == 1 else weights.keys() - newer)
        assert all(torch.equal(weights[key], p) for key, p in frozen.items() if phase == 1 or key not in newer)
        with task.recalled(phase):
            assert torch.equal(watch.outputs(task), watch.before[phase])
            for key, p in frozen.items():  # the average has come to the weights at which they were frozen
                torch.testing.assert_close(watch._average[key], p, rtol=0, atol=0.2 if phase else 2e-2)
    assert not torch.equal(watch.outputs(task), watch.before[-1])
    trained = {key for key, p in task.named_parameters() if p.requires_grad}
    assert trained and all(
        key.startswith(("model.columns.1", "model.laterals.1", "model.ends.1", "model.blocks")) for key in trained
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_growing_does_not_change_the_function(songs: Path, tmp_path: Path, name: str) -> None:
    _, held = batch(songs, NETWORKS[name])
    watch, (task, data) = Watch(held), build(songs, NETWORKS[name])
    trainer(tmp_path, max_steps=12, callbacks=[in_phases(), watch], limit_val_batches=0).fit(task, data)
    assert len(watch.before) == 2
    for before, after in zip(watch.before, watch.after, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_a_random_column_begins_anew(songs: Path, tmp_path: Path) -> None:
    network = partial(NETWORKS["progressive"], start="random")
    _, held = batch(songs, network)
    watch, (task, data) = Watch(held), build(songs, network)
    trainer(tmp_path, max_steps=12, callbacks=[in_phases(), watch], limit_val_batches=0).fit(task, data)
    for before, after in zip(watch.before, watch.after, strict=True):
        assert (after - before).abs().max() > 1e-2
    assert task.model.laterals[1][0].weight.shape == (16, 32)


def test_it_grows_only_before_a_phase_whose_loss_is_above_the_threshold(songs: Path, tmp_path: Path) -> None:
    for threshold, parts, added in ((100.0, 0, [False, False]), (0.0, 2, [True, True])):
        task, data = build(songs, partial(ExpandableTransformer, **SMALL, threshold=threshold, units=8))
        trainer(tmp_path, max_steps=12, callbacks=[in_phases()], limit_val_batches=0).fit(task, data)
        assert task.model.parts.newest == parts
        assert [each["grown"] for each in task.phases.added_modules] == added
    parts_of = [task.model.parts.of_phase(name) for name in ("classical", "folk", "again", "unknown")]
    assert parts_of == [0, 1, 2, 2] and task.model.parts.of_genre("folk") == 1


def test_phases_that_share_units_are_read_by_the_same_ones() -> None:
    network: Any = ExpandableTransformer(vocab_size=8, **SMALL)
    network.parts.begin("folk+jazz", after="classical", grown=False)
    assert isinstance(network, Grows) and network.parts.of_phase("folk+jazz") == network.parts.of_genre("jazz") == 0
    network.grow()
    network.parts.begin("rock", after="folk+jazz", grown=True)
    assert [network.parts.of_genre(genre) for genre in ("classical", "folk", "rock", "pop")] == [0, 0, 1, 1]
    assert network.parts.active == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_token_by_token_it_computes_the_same_in_each_part(songs: Path, name: str) -> None:
    task, held = grown(songs, name)
    outputs = []
    for phase in range(3):
        with torch.no_grad(), task.model.parts.reading(phase):
            tokens = held["tokens"][:1, :12]
            features = {key.removeprefix("feature_"): v[:1, :12] for key, v in held.items() if key.startswith("feature_")}
            whole = task.model(tokens, features=features)
            cache = task.model.new_cache(1, 12)
            parts = [
                task.model(tokens[:, i : i + 1], features={k: v[:, i : i + 1] for k, v in features.items()}, cache=cache)
                for i in range(12)
            ]
            torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
            embedded = task.model(tokens, features=features, embeddings_btd=task.model.embed(tokens))
            torch.testing.assert_close(embedded, whole)
            outputs.append(whole)
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])


def test_laterals_add_what_earlier_columns_computed(songs: Path) -> None:
    task, held = grown(songs, "progressive", phases=2)
    network = task.model
    came, read = {}, {}
    for layer in range(2):
        network.blocks[layer].register_forward_hook(lambda _, x, y, n=layer: came.__setitem__(n, y))
        network.laterals[0][layer].register_forward_pre_hook(lambda _, x, n=layer: read.__setitem__(n, x[0]))
    with torch.no_grad():
        with network.parts.reading(0):
            task.logits(held)
        alone = {layer: F.rms_norm(state, (16,)) for layer, state in came.items()}
        task.train().logits(held)
        for layer, state in alone.items():  # without the dropout of training, too
            torch.testing.assert_close(read[layer], state, rtol=1e-4, atol=1e-4)
    task.eval()
    with torch.no_grad():
        with_laterals = task.logits(held)
        for layer in network.laterals[0]:
            layer.weight.zero_()
        alone = task.logits(held)
        column = network.columns[0]
        features = {key.removeprefix("feature_"): v for key, v in held.items() if key.startswith("feature_")}
        expected = column(held["tokens"], documents_bt=held["documents"], positions_bt=held["positions"], features=features)
    assert torch.equal(alone, expected) and not torch.allclose(alone, with_laterals)
    task.train()
    loss = task.losses(held)["nll"]
    loss.backward()
    assert all(p.grad is None for p in network.blocks.parameters()) and network.laterals[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kill", [3, 4, 6, 8, 10])
def test_killed_in_any_phase_it_does_the_same(songs: Path, tmp_path: Path, name: str, kill: int) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        techniques = [in_phases(), Ema(decay=0.5), Forgetting()]
        return fit(tmp_path / folder, lambda: build(songs, NETWORKS[name]), techniques, steps=12, **options)

    whole = run("whole")
    run("half", kill_at=kill)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])
    assert str(whole["callbacks"]["Forgetting"]) == str(rest["callbacks"]["Forgetting"])
    again, _ = build(songs, NETWORKS[name])
    again.phases.restore_modules(again, torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["etude"])
    again.load_state_dict(whole["saved"])
    assert again.model.parts.phases == [{"classical"}, {"folk"}, {"again"}]


TOGETHER: dict[str, Callable[[], list[Any]]] = {
    "progressive": lambda: [Ewc(samples=2), Replay(size=4, batch_size=1), Swa(start=0.2, every=1), PackNet(keep=0.5)],
    "expandable": lambda: [
        MetaReplay(size=4, batch_size=1, cycle=3),
        Prune(heads=0.5, rounds=2),
        GrowWidth(end=0.9),
        Ema(decay=0.5),
    ],
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kill", [5, 9])
def test_with_other_techniques_it_resumes_and_no_frozen_weight_moves(songs: Path, tmp_path: Path, name: str, kill: int) -> None:
    class Frozen(Forgetting):
        """Looks at what is frozen when a phase begins, and at the end."""

        held: dict[str, torch.Tensor]

        def on_train_start(self, trainer: Any, task: Any) -> None:
            super().on_train_start(trainer, task)
            self.on_phase_start(task)

        def on_phase_start(self, task: Any) -> None:
            self.held = {n: p.detach().clone() for n, p in task.named_parameters() if not p.requires_grad}

        def on_train_end(self, trainer: Any, task: Any) -> None:
            super().on_train_end(trainer, task)
            self.moved = [n for n, p in task.named_parameters() if n in self.held and not torch.equal(p, self.held[n])]

    def run(folder: str, look: Frozen, **options: Any) -> dict[str, Any]:
        techniques = [in_phases(), look, *TOGETHER[name]()]
        return fit(tmp_path / folder, lambda: build(songs, NETWORKS[name]), techniques, steps=12, **options)

    look = Frozen()
    whole = run("whole", look)
    assert look.held and not look.moved
    run("half", Frozen(), kill_at=kill)
    rest = run("rest", Frozen(), resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_forgetting_matrix_reads_each_phase_by_its_part(songs: Path, tmp_path: Path, name: str) -> None:
    measured = Forgetting()
    task, data = build(songs, NETWORKS[name])
    stages = Stages(stages=[{"name": genre, "data": {"genre": genre}, "max_steps": 4} for genre in GENRES])
    trainer(tmp_path, max_steps=8, callbacks=[stages, measured], limit_val_batches=0).fit(task, data)
    after = {row["after"]: row["values"]["nll"] for row in measured.rows if row["ends"] is not None}
    assert after["folk"][0] == after["classical"][0] and after["folk"][1] != after["classical"][1]


@pytest.mark.parametrize(("technique", "held"), [("ewc", "fisher"), ("si", "importance")])
def test_a_penalty_that_holds_nothing_says_so(
    songs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, technique: str, held: str
) -> None:
    for network, told in ((NETWORKS["progressive"], 2), (partial(Transformer, **SMALL), 0)):
        caplog.clear()
        penalty: Any = Ewc(samples=2) if technique == "ewc" else Si()
        trainer(tmp_path, max_steps=6, callbacks=[in_phases(2), penalty], limit_val_batches=0).fit(*build(songs, network))
        assert getattr(penalty, held)
        assert sum(f"{technique}: nothing is held in" in record.message for record in caplog.records) == told


def test_layer_decay_and_pruning_of_blocks_reach_the_newest_column(songs: Path, tmp_path: Path) -> None:
    stages = Stages(
        stages=[{"name": "classical", "data": {"genre": "classical"}, "max_steps": 3}, {"name": "folk", "layer_decay": 0.5}]
    )
    pruned, (task, data) = (
        Prune(layers=0.5, heads=None, units=None, rounds=1, start=0.9, end=0.9),
        build(songs, NETWORKS["progressive"]),
    )
    trainer(tmp_path, max_steps=6, callbacks=[stages, pruned], limit_val_batches=0).fit(task, data)
    assert task.lr_factors["model.columns.0.blocks.0."] == 0.5 and task.lr_factors["model.columns.0.blocks.1."] == 1
    rates = {id(p): group["lr"] for group in task.trainer.optimizers[0].param_groups for p in group["params"]}
    first, second = (rates[id(block.feed_forward.gate.weight)] for block in task.residual_blocks)
    assert first == pytest.approx(second / 2)
    assert len(pruned.pruned_blocks) == 1 and pruned.pruned_blocks[0].startswith("model.columns.0.blocks.")


def test_what_cannot_grow_is_told(songs: Path, tmp_path: Path) -> None:
    for name in NETWORKS:
        task, data = build(songs, NETWORKS[name])
        with pytest.raises(ValueError, match=r"Transformer grows between the phases of a run, and this run has a single phase"):
            trainer(tmp_path, max_steps=2).fit(task, data)
        with pytest.raises(ValueError, match=f"model={name} grows with the phases of task=language_model"):
            data = music(songs, controls=[], targets=["genre"])
            Classifier(
                model=partial(NETWORKS[name], causal=False), tokenizer=data.tokenizer, optimizer=torch.optim.AdamW,
                **data.label_parts,
            )  # fmt: skip
    with pytest.raises(ValueError, match=r"modules of folk: LanguageModel can't add modules"):
        stages = Stages(stages=[{"name": "all", "max_steps": 1}, {"name": "folk", "modules": {"grown": True}}])
        trainer(tmp_path, max_steps=2, callbacks=[stages]).fit(*build(songs, NETWORKS["progressive"]))
    for name, technique in (("progressive", GrowLayers()), ("progressive", Lora(rank=2)), ("expandable", Lora(rank=2))):
        with pytest.raises(ValueError, match=f"technique {technique.name} acts on the layers with which a run begins, and"):
            trainer(tmp_path, max_steps=2, callbacks=[in_phases(1), technique]).fit(*build(songs, NETWORKS[name]))
    plain, _ = build(songs, partial(Transformer, **SMALL))
    with pytest.raises(ValueError, match="the network of this checkpoint grew when folk began, which Transformer can't"):
        plain.phases.restore_modules(plain, {"phases": {"added": [{"phase": "folk", "after": "classical", "grown": True}]}})
    with pytest.raises(ValueError, match=r"model\.start is 'old', must be one of random, copy"):
        ProgressiveTransformer(vocab_size=8, start="old")
    for option, value in (("threshold", -1), ("units", 0)):
        with pytest.raises(ValueError, match=rf"model\.{option} is {value}, must be"):
            ExpandableTransformer(vocab_size=8, **{option: value})


def test_samples_of_a_genre_come_from_its_part(songs: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, _ = grown(songs, "progressive", phases=2)
    task.model.parts.phases = [{"classical"}, {"folk"}]
    read: list[int] = []
    forward = task.model.hidden
    task.model.hidden = lambda *args, **kwargs: (read.append(task.model.parts.active), forward(*args, **kwargs))[1]
    for genre, part in (("classical", 0), ("folk", 1), (None, 1)):
        read.clear()
        labels = {} if genre is None else {"genre": genre}
        task.sample(num_samples=1, labels=labels, num_bars=1, max_new_tokens=8, seed=3)
        assert set(read) == {part}
    assert isinstance(task, Task) and task.model.parts.active == 1
    task.model.parts.phases = [{"first"}, {"folk"}]
    caplog.clear()
    for genre in ("folk", "classical"):
        task.sample(num_samples=1, labels={"genre": genre}, num_bars=1, max_new_tokens=8, seed=3)
    assert [r.message for r in caplog.records if "names no phase" in r.message] == [
        "genre=classical names no phase of this model's training, so its newest weights are used"
    ]


def test_evaluation_reads_each_piece_by_the_part_of_its_genre(songs: Path, tmp_path: Path) -> None:
    measured = Forgetting()
    task, data = build(songs, NETWORKS["progressive"])
    stages = Stages(stages=[{"name": genre, "data": {"genre": genre}, "max_steps": 4} for genre in GENRES])
    trainer(tmp_path, max_steps=8, callbacks=[stages, measured], limit_val_batches=0).fit(task, data)
    found = split_likelihood(task, data, "val")
    columns = data.held_out("val")
    tokens = [columns["tokens"][columns["genre"] == genre].sum() for genre in GENRES]
    recalled = measured.rows[-1]["values"]["nll"]
    expected = sum(nll * count for nll, count in zip(recalled, tokens, strict=True)) / sum(tokens)
    assert found["nats_per_token"] == pytest.approx(expected, rel=0.02)  # the counts of tokens differ by marks at the ends
    task.model.parts.phases = [{"classical"}, {"classical", "folk"}]
    assert split_likelihood(task, data, "val")["nats_per_token"] != found["nats_per_token"]
