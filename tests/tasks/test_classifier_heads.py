"""Several heads: groups that share nothing, one head alone, balanced losses with missing labels, hidden metres, heads=[...]."""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from etude.models.shared_encoders import SHARING
from etude.run.heads import set_targets
from etude.tasks.class_inputs import TokenInputs
from etude.tasks.classifier import Classifier
from etude.techniques.loss.balance import Balance, Method
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import TIME_SIG
from tests.tasks.test_classifier import LABELS, Fixed, batch, task
from tests.toys import same, trainer, weights

SGD = partial(torch.optim.SGD, lr=0.1)


def plain_task(**options: Any) -> Classifier:
    return task(**{"optimizer": SGD, "head_dropout": 0.0, **options})


def trained(
    folder: Path, of: Classifier, steps: int = 6, *, batches: list[dict[str, Tensor]] | None = None, callbacks: Any = ()
) -> dict[str, Tensor]:
    run = trainer(folder, max_steps=steps, limit_val_batches=0, callbacks=list(callbacks))
    run.fit(of, Fixed(batches or [batch(), batch(genre=(1, 0, 0, 1), metre=(0, 2, -1, 1))]))
    return weights(of)


def test_groups_of_one_head_are_the_single_tasks(tmp_path: Path) -> None:
    both = plain_task(heads=[["genre"], ["metre"]])
    begun = weights(both)
    ended = trained(tmp_path / "both", both)
    for place, name in enumerate(LABELS):
        alone = plain_task(labels={name: LABELS[name]})
        own = {key: key.replace("networks.0", f"networks.{place}") for key in alone.state_dict() if key != "seen"}
        alone.load_state_dict({key: begun[other] for key, other in own.items()}, strict=False)
        for key, value in trained(tmp_path / name, alone).items():
            if key != "seen":
                torch.testing.assert_close(value, ended[own[key]])
                assert not torch.equal(value, begun[own[key]]) or "feature" in key


@pytest.mark.parametrize("sharing", SHARING)
def test_one_head_has_one_network_however_it_is_shared(tmp_path: Path, sharing: str) -> None:
    """With one head, cross-stitch and soft sharing are the single-task classifier; attention has a mask of its own."""
    one = {"genre": LABELS["genre"]}
    single, other = (trained(tmp_path / each, plain_task(labels=one, sharing=each)) for each in ("hard", sharing))
    if sharing == "attention":
        assert any("masks" in key for key in other)
        return
    assert single.keys() <= other.keys() and same({k: other[k] for k in single}, single)


def test_a_cross_stitch_of_the_identity_trains_as_separate_networks() -> None:
    stitched, apart = task(sharing="cross_stitch", head_dropout=0.0), task(sharing="soft", head_dropout=0.0)
    apart.model.networks.load_state_dict(stitched.model.networks.state_dict())
    apart.heads.load_state_dict(stitched.heads.state_dict())
    stitched.model.mixture.data = torch.eye(2).repeat(2, 1, 1)
    for of in (stitched, apart):
        losses = of.losses(batch())
        (losses["genre"] + losses["metre"]).backward()
    for name, parameter in apart.named_parameters():
        found = dict(stitched.named_parameters())[name].grad
        assert parameter.grad is not None and found is not None
        torch.testing.assert_close(found, parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_group_s_loss_reaches_its_network_alone() -> None:
    of = task(heads=[["metre"], ["genre"]])
    assert len(of.model.networks) == 2
    of.losses(batch())["genre"].backward()
    first, second = (next(network.blocks.parameters()).grad for network in of.model.networks)
    assert first is None and second is not None and bool(second.any())


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_balances_heads_whose_labels_are_missing_in_a_batch(tmp_path: Path, method: Any) -> None:
    nothing = (-1, -1, -1, -1)
    batches = [batch(), batch(metre=nothing), batch(genre=nothing), batch(genre=(1, 0, 0, 1))]
    plain = trained(tmp_path / "plain", plain_task(), 12, batches=batches)
    balanced = trained(tmp_path / method, plain_task(), 12, batches=batches, callbacks=[Balance(method=method, period=2)])
    assert all(bool(value.isfinite().all()) for value in balanced.values())
    assert same(plain, balanced) == (method == "fixed")


# --- the metre that tokens tell ---


def remi() -> MidiTokTokenizer:
    return MidiTokTokenizer(genres=[], scheme="REMI", infill=False)


def test_time_signatures_are_hidden_from_a_head_of_the_metre() -> None:
    tokenizer = remi()
    first, second = tokenizer.table.of_kind[TIME_SIG][:2].tolist()
    tokens = torch.tensor([[first, 5, second, 6]])
    hidden = TokenInputs(tokenizer, hide_metre=None, heads=["genre", "metre"])
    assert hidden.shown(tokens).tolist() == [[first, 5, first, 6]]
    for inputs in (
        TokenInputs(tokenizer, hide_metre=False, heads=["metre"]),
        TokenInputs(tokenizer, hide_metre=None, heads=["genre"]),
    ):
        assert inputs.shown(tokens).tolist() == tokens.tolist()


def test_what_can_not_be_hidden_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task.hide_metre=true: this tokenizer has no tokens of time signatures"):
        task(hide_metre=True)
    pairs = MidiTokTokenizer(genres=[], scheme="REMI", infill=False, bpe_vocab_size=900)
    with pytest.raises(ValueError, match=r"byte pairs can hold time signatures.*task.hide_metre=false"):
        TokenInputs(pairs, hide_metre=None, heads=["metre"])


# --- the options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": [["genre"], ["metre"]], "sharing": "soft"}, r"sharing=soft is for heads that are trained together.*2 groups"),
        ({"heads": [["genre"], ["key"]]}, r"heads=\[\['genre'\], \['key'\]\]: the data give labels of genre, metre"),
        ({"heads": ["genre"]}, "name each of them in one group"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_the_option_heads_sets_the_targets_of_the_data() -> None:
    cfg = OmegaConf.create({"heads": [["genre", "composer"], ["key"]], "data": {"targets": []}})
    set_targets(cfg, ["heads=[[genre,composer],[key]]"])
    assert cfg.data.targets == ["genre", "composer", "key"]
    untouched = OmegaConf.create({"heads": None, "data": {"targets": ["dance"]}})
    set_targets(untouched, ["data.targets=[dance]"])
    assert untouched.data.targets == ["dance"]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("genre", "heads=genre can't be read; give column names"),
        ([], r"heads=\[\] can't be read"),
        ([["genre"], "key"], "can't be read"),
        ([[], ["key"]], "can't be read"),
        (["genre", "genre"], "names genre twice"),
        (["key"], r"heads=\['key'\] and data.targets=\['dance'\] differ; leave data.targets out"),
    ],
)
def test_heads_that_are_none_are_refused(heads: Any, message: str) -> None:
    cfg = OmegaConf.create({"heads": heads, "data": {"targets": ["dance"]}})
    with pytest.raises(ValueError, match=message):
        set_targets(cfg, ["data.targets=[dance]"])
