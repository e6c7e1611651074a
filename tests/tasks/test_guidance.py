"""Guidance is for models that were also trained without labels, and for samples that are asked for some."""

import functools
from typing import Any

import pytest
import torch

from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.tokens.miditok import MidiTokTokenizer
from tests.tokens.test_infilling import quartet


def model(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        model=functools.partial(Transformer, dim=16, num_layers=1, num_heads=2, hidden_dim=16),
        tokenizer=MidiTokTokenizer(genres=["folk"]), optimizer=torch.optim.AdamW, **options,
    )  # fmt: skip


def test_guided_samples_differ_and_prompts_of_several_lengths_go_on() -> None:
    task, labels = model(label_dropout=0.2), {"genre": "folk", "metre": "3/4"}
    plain, zero, guided = (
        task.sample(labels=labels, num_bars=2, max_new_tokens=200, num_samples=2, **how)
        for how in ({}, {"guidance": 0.0}, {"guidance": 20.0})
    )
    dumps = [[score.dumps_midi() for score in scores] for scores in (plain, zero, guided)]
    assert dumps[0] == dumps[1] != dumps[2]
    prompts = [quartet(1), quartet(3)]
    samples = task.sample(prompt=prompts, labels={"genre": "folk"}, num_bars=4, max_new_tokens=300, guidance=2.0)
    (alone,) = task.sample(prompt=prompts[0], labels={"genre": "folk"}, num_bars=4, max_new_tokens=300, guidance=2.0)
    assert samples[0].dumps_midi() == alone.dumps_midi()


@pytest.mark.parametrize(
    ("dropout", "labels", "how", "message"),
    [
        (0.0, {"genre": "folk"}, {"guidance": 1.5}, "needs a model that was also trained without labels.*control_dropout=0.2"),
        (0.2, {"polyphony": 2}, {"guidance": 1.5}, "strengthens labels, and none is asked for"),
        (0.2, {"genre": "folk"}, {"guidance": -1.0}, "at least 0"),
        (0.2, {"genre": "folk"}, {"guidance": 1.5, "decoding": "beam"}, "add decoding=sample"),
    ],
)
def test_what_guidance_cannot_do_is_refused(dropout: float, labels: dict[str, Any], how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        model(label_dropout=dropout).sample(labels=labels, **how)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_tells_whether_labels_were_left_out() -> None:
    saved: dict[str, Any] = {}
    model(label_dropout=0.3).on_save_checkpoint(saved)
    own = {**saved["etude"], "recipe": {"data": {"control_dropout": 0.1}}}
    assert LanguageModel.constructor_arguments_from(own)["label_dropout"] == 0.3
    del own["label_dropout"]  # an older one
    assert LanguageModel.constructor_arguments_from(own)["label_dropout"] == 0.1
