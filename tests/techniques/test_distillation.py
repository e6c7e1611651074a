"""Laws of distillation: nothing to learn from oneself, the teacher stays outside, terms against hand computation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from etude.core.checkpoints import LastCheckpoint
from etude.core.task import Task
from etude.losses.distillation import adaptive_temperature, attention_loss, projected_distance, soft_target_loss
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.loss.distillation import Distillation
from etude.techniques.weights.grow_layers import GrowLayers
from etude.tokens.rows import packed_rows
from etude.tokens.satb import SatbGrid
from tests.toys import PairsData, ToyGan, mlp, same, trainer, weights


def language_model(dim: int, tokenizer: Any, layers: int = 1, **options: Any) -> LanguageModel:
    model = partial(Transformer, dim=dim, num_layers=layers, num_heads=2, dropout=0.0, **options)
    return LanguageModel(model=model, tokenizer=tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1)


def teach(folder: Path, make: Callable[[], Task]) -> dict[str, Any]:
    """Options that give `make()` as the teacher."""
    path = folder / "teacher.ckpt"
    torch.manual_seed(5)
    torch.save(make().state_dict(), path)

    def load(path: Path) -> tuple[Task, None]:
        torch.manual_seed(5)
        teacher = make()
        teacher.load_state_dict(torch.load(path, weights_only=True))
        return teacher, None

    return {"teacher": str(path), "find": lambda ckpt, option: Path(ckpt), "load": load}


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Task, Any]]) -> dict[str, Any]:
    _, data = build()
    if kind == "language_model":
        drawn = {"num_sequences": 2, "sequence_tokens": 48}
        wide = partial(language_model, 32, data.tokenizer, 2)
        return {**teach(folder, wide), "features": 1.0, "attention": 1.0, "sequence_share": 0.3, **drawn}
    return {**teach(folder, lambda: build()[0]), "features": 1.0 if kind == "restyler" else 0.0}


# --- losses ---


def test_soft_targets_are_hintons_and_vanish_where_both_agree() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    temperature = torch.full((5,), 3.0)
    p, q = (F.softmax(x / 3, -1) for x in (teacher, student))
    assert torch.allclose(soft_target_loss(student, teacher, temperature), 9 * (p * (p / q).log()).sum(-1), atol=1e-5)
    assert soft_target_loss(teacher, teacher, temperature).abs().max() < 1e-6


def test_the_gradients_size_hardly_depends_on_the_temperature() -> None:
    teacher = 0.1 * torch.randn(4, 9)
    norms = []
    for temperature in (2.0, 8.0):
        student = (0.1 * torch.ones(4, 9)).requires_grad_()
        soft_target_loss(student, teacher, torch.full((4,), temperature)).sum().backward()
        norms.append(float(student.grad.norm()))  # type: ignore[union-attr]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_a_sure_teacher_is_softened_and_a_doubtful_one_is_not() -> None:
    logits = torch.tensor([[30.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 1.0, -1e4, -1e4]])
    assert torch.allclose(adaptive_temperature(logits, 4.0), torch.tensor([4.0, 1.0, 1.0]), atol=1e-3)


def test_features_and_attention_are_zero_for_equals() -> None:
    states = torch.randn(2, 5, 6)
    assert projected_distance(states, states, torch.eye(6)).abs() < 1e-6
    maps = [torch.randn(2, 4, 4).softmax(-1), torch.randn(2, 3, 3).softmax(-1)]
    assert attention_loss(maps, maps).abs() < 1e-6
    assert attention_loss(maps, [m.roll(1, -1) for m in maps]) > 0


def test_recomputed_attention_is_what_the_network_mixes_with() -> None:
    torch.manual_seed(0)
    model = Transformer(vocab_size=11, dim=16, num_layers=1, num_heads=2, fused=False)
    attention = model.blocks[0].attention
    x, rotary = torch.randn(2, 5, 16), model._rotary(torch.zeros(2, 5, dtype=torch.long), None, None, torch.float32)
    maps = torch.stack(attention.maps(x, rotary))  # [b, h, t, t]
    assert torch.allclose(maps.sum(-1), torch.ones(2, 2, 5)) and maps.triu(1).abs().max() == 0
    values = attention.value(x).view(2, 5, 2, 8).transpose(1, 2)
    mixed = (maps @ values).transpose(1, 2).reshape(2, 5, 16)
    assert torch.allclose(attention.output(mixed), attention(x, rotary), atol=1e-5)


def test_rows_of_sequences_are_as_the_datas() -> None:
    tokenizer = SatbGrid(genres=["a"], bar_steps=4)
    body = torch.tensor([tokenizer.rest_id + 1 + i for i in range(8)])
    rows = packed_rows(tokenizer, [body], rows=1, length=12)
    assert rows["tokens"][0, :10].tolist() == [1, *body.tolist(), 1] and rows["targets"][0, :9].tolist() == [*body.tolist(), 2]
    assert rows["documents"][0].tolist() == [0] * 9 + [1] * 3 and rows["positions"][0, 8:11].tolist() == [8, 0, 1]
    assert rows["feature_voice"][0, :6].tolist() == [0, 1, 2, 3, 4, 1]


# --- the technique ---


class Terms(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append({n: float(v) for n, v in trainer.callback_metrics.items() if "distill" in n})


def gan(folder: Path, *techniques: pl.Callback, steps: int = 4, resume: Path | None = None) -> ToyGan:
    torch.manual_seed(0)
    task = ToyGan()
    last = LastCheckpoint(path=folder / "last.ckpt", every_n_steps=steps)
    trainer(folder, max_steps=steps, callbacks=[*techniques, last]).fit(task, PairsData(), ckpt_path=resume, weights_only=True)
    return task


def test_a_teacher_that_equals_the_student_teaches_nothing_at_first_and_stays_outside(tmp_path: Path) -> None:
    def make() -> ToyGan:
        torch.manual_seed(0)
        return ToyGan()

    technique, terms = Distillation(**teach(tmp_path, make)), Terms()
    task = gan(tmp_path, technique, terms)
    assert terms.seen[0]["train/generator/distill_output"] == 0 < terms.seen[3]["train/generator/distill_output"]
    assert weights(task).keys() == weights(ToyGan()).keys()
    optimized = {id(p) for group in task.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized.isdisjoint({id(p) for p in technique.teacher.parameters()})
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["callbacks"][technique.state_key]["teacher"]["sha256"] == technique._file.state["sha256"]
    assert all(torch.equal(v, weights(make())[n]) for n, v in weights(technique.teacher).items())


def test_the_students_outputs_come_nearer_to_the_teachers(tmp_path: Path) -> None:
    def wide() -> ToyGan:
        task = ToyGan()
        task.ab, task.ba = (torch.nn.Sequential(mlp(8, 32), mlp(32, 8)) for _ in range(2))
        return task

    terms = Terms()
    torch.manual_seed(0)
    task = ToyGan(optimizer=partial(torch.optim.Adam, lr=1e-2), player_lr={})
    technique = Distillation(**teach(tmp_path, wide), output=30.0)
    trainer(tmp_path, max_steps=60, callbacks=[technique, terms]).fit(task, PairsData())
    values = [seen["train/generator/distill_output"] for seen in terms.seen]
    assert sum(values[-5:]) < 0.6 * sum(values[:5])


def test_another_teacher_is_refused_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    gan(tmp_path / "one", Distillation(**teach(tmp_path / "one", ToyGan)))
    other = teach(tmp_path / "other", lambda: ToyGan(noise=0.0))
    torch.save({**ToyGan().state_dict()}, tmp_path / "other" / "teacher.ckpt")
    with pytest.raises(ValueError, match=r"was distilled from .*give the same one"):
        gan(tmp_path / "other", Distillation(**other), steps=6, resume=tmp_path / "one" / "last.ckpt")


def test_another_vocabulary_is_refused_naming_both(tmp_path: Path) -> None:
    mine, theirs = SatbGrid(genres=["a"]), SatbGrid(genres=["a", "b"])
    technique = Distillation(**teach(tmp_path, partial(language_model, 8, theirs)))
    with pytest.raises(ValueError, match=rf"another vocabulary \({len(theirs)} tokens.*LanguageModel \({len(mine)}"):
        technique.setup(trainer(tmp_path, max_steps=1), language_model(8, mine), "fit")
    with pytest.raises(ValueError, match="is a LanguageModel, the student a ToyGan"):
        technique.setup(trainer(tmp_path, max_steps=1), ToyGan(), "fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "must be at least 1"),
        ({"temperature_schedule": "cold"}, "constant, annealed, adaptive"),
        ({"soft": -1.0}, "must be 0 or more"),
        ({"class_weights": {"pich": 1.0}}, "classes are control, pitch, time"),
        ({"temperature_schedule": "annealed"}, "changes nothing at temperature 1; give technique.distillation.temperature=2"),
        ({"class_weights": {"pitch": -1.0}}, "must be at least 0 each"),
        ({"class_temperatures": {"pitch": 0.0}}, "above 0"),
        ({"sequence_share": 2.0}, r"must be in \[0, 1\]"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**options)


def test_classes_weigh_and_soften_by_target(tmp_path: Path) -> None:
    tokenizer = SatbGrid(genres=["a"], bar_tokens=True)
    student, teacher = language_model(8, tokenizer), language_model(16, tokenizer)
    logits, answer = torch.randn(1, 3, len(tokenizer)), torch.randn(1, 3, len(tokenizer))
    targets = torch.tensor([[tokenizer.bar_id, tokenizer.rest_id + 5, -100]])
    student.trace = {"logits": logits}
    options: dict[str, Any] = {
        "hard": 0.3,
        "class_weights": {"time": 0.0},
        "class_temperatures": {"pitch": 2.0},
        "temperature": 1.5,
    }
    technique = Distillation(**teach(tmp_path, lambda: teacher), **options)
    technique.setup(trainer(tmp_path, max_steps=1), student, "fit")
    found = technique._language_terms(student, {"targets": targets}, {"logits": answer})["distill_soft"]
    assert torch.allclose(found, soft_target_loss(logits[0, 1:2], answer[0, 1:2], torch.tensor([3.0]))[0])
    student.trace["token_weight"] = torch.full(targets.shape, 0.25 / int((targets != -100).sum()))  # of mixtures, a share of 1/4
    mixed = technique._language_terms(student, {"targets": targets}, {"logits": answer})["distill_soft"]
    assert torch.allclose(mixed, 0.25 * found)
    technique._own = frozenset({"nll"})  # as extra_losses finds them
    both = {"nll": found, "distill_soft": found, "musical_smoothing": found}
    assert technique.scale_losses(student, both) == {"nll": 0.3}  # neither its own terms nor another technique's


def test_same_helper_is_bitwise(tmp_path: Path) -> None:
    options = teach(tmp_path, ToyGan)
    one, other = (gan(tmp_path / str(i), Distillation(**options)) for i in range(2))
    assert same(weights(one), weights(other))


def test_a_block_that_rests_is_not_compared(tmp_path: Path) -> None:
    tokenizer = SatbGrid(genres=["a"], bar_steps=4)
    technique = Distillation(**teach(tmp_path, partial(language_model, 16, tokenizer, 2)), features=1.0, attention=1.0)
    student = language_model(8, tokenizer, 2)
    student.trainer = trainer(tmp_path, max_steps=1)
    technique.setup(student.trainer, student, "fit")
    technique.on_fit_start(student.trainer, student)
    growth = GrowLayers(start=0.5)
    growth.setup(student.trainer, student, "fit")
    ids = torch.tensor([tokenizer.rest_id + 1 + i for i in range(8)])
    batch = packed_rows(tokenizer, [ids], rows=1, length=12)
    terms = {}
    for resting in (False, True):
        growth.active = 1 if resting else 2
        terms[resting] = technique.extra_losses(student, batch, student.losses(batch))
    assert terms[False].keys() == {"distill_soft", "distill_features", "distill_attention"}
    assert terms[True].keys() == {"distill_soft", "distill_features"} and terms[True]["distill_features"].isfinite()


def test_a_bad_step_leaves_the_projections_alone(tmp_path: Path) -> None:
    technique, task = Distillation(**teach(tmp_path, ToyGan)), ToyGan()
    task.trainer = trainer(tmp_path, max_steps=1)
    technique._projections = [torch.eye(2, requires_grad=True)]
    technique._optimizer = torch.optim.Adam(technique._projections)
    for gradient in (torch.ones(2, 2), torch.full((2, 2), torch.nan), torch.ones(2, 2)):
        technique._projections[0].grad = gradient
        technique.transform_gradients(task)
    assert technique._projections[0].isfinite().all() and technique._optimizer.state_dict()["state"][0]["step"] == 2


def test_a_wider_teacher_embeds_tokens_itself_where_the_students_embeddings_are_changed(tmp_path: Path) -> None:
    tokenizer = SatbGrid(genres=["a"], bar_steps=4)
    body = torch.tensor([tokenizer.rest_id + 1 + i for i in range(8)])
    rows = packed_rows(tokenizer, [body], rows=1, length=12)
    student, teacher = language_model(8, tokenizer), language_model(16, tokenizer)
    technique = Distillation(**teach(tmp_path, lambda: teacher))
    technique.setup(trainer(tmp_path, max_steps=1), student, "fit")
    terms = []
    for change in (0.0, 1.0):
        changed = student.with_inputs(rows, {"embeddings": student.inputs(rows)["embeddings"] + change})
        student.trace = {"logits": student.logits(rows)}
        terms.append(technique.extra_losses(student, changed, {"nll": torch.tensor(0.0)})["distill_soft"])
    torch.testing.assert_close(terms[0], terms[1])
