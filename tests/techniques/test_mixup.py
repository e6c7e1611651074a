"""MixUp: a share of 1 mixes nothing, mixtures and their losses are the formula, and runs resume."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from etude.core.alone import alone, owners
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.data.mixup import Mixup, beta
from etude.techniques.loss.musical_domain import MusicalDomain
from etude.techniques.loss.rdrop import RDrop
from etude.techniques.loss.self_paced import SelfPaced
from tests.robust import first_batch, pair
from tests.songs import write_songs
from tests.tasks.test_classifier import batch as packed
from tests.tasks.test_classifier import task as small_classifier
from tests.test_composition import build, fit
from tests.toys import same, trainer


def test_a_share_of_one_is_no_mixup(tmp_path: Path) -> None:
    off = fit(tmp_path / "off", lambda: pair("grader", tmp_path), [])
    one = fit(tmp_path / "one", lambda: pair("grader", tmp_path), [Mixup(share=1.0)])
    assert same(off["trained"], one["trained"])
    task = small_classifier(head_dropout=0.0).eval()
    plain, mixed = task.losses(packed()), task.losses(Mixup(share=1.0).transform_batch(task, packed()))
    for name in plain:
        torch.testing.assert_close(mixed[name], plain[name], atol=1e-5, rtol=1e-5)


def test_mels_and_truths_are_weighted_means(tmp_path: Path) -> None:
    task, data = pair("grader", tmp_path)
    batch = first_batch(data)
    found = Mixup(share=0.7).transform_batch(task, batch)
    count = batch["mel"].shape[1]
    order = [
        next(j for j in range(count) if torch.allclose(found["mel"][0, i], 0.7 * batch["mel"][0, i] + 0.3 * batch["mel"][0, j]))
        for i in range(count)
    ]
    assert sorted(order) == list(range(count)) and order != list(range(count))
    for name in ("defects", "bands", "quality", "onsets", "sections"):
        torch.testing.assert_close(found[name], 0.7 * batch[name] + 0.3 * batch[name][:, order])


def test_scores_are_mixed_as_embeddings_with_both_labels() -> None:
    task, technique = small_classifier(head_dropout=0.0).eval(), Mixup(share=0.6, seed=2)
    single = alone(task, packed())
    found = technique.transform_batch(task, packed())
    embeddings = task.inputs(single)["embeddings"] * (single["documents"] >= 0)[..., None]
    draws = technique.generator(0)
    order = torch.randperm(4, generator=draws)
    torch.testing.assert_close(found["embeddings"], 0.6 * embeddings + 0.4 * embeddings[order])
    lengths = (single["documents"] >= 0).sum(1)
    assert torch.equal((found["documents"] >= 0).sum(1), torch.maximum(lengths, lengths[order]))
    logits = task.class_logits(found)
    for name, losses in task.losses(found).items():
        own = task.documents(single, f"label_{name}")
        other = own[order]
        expected = sum(
            share * torch.nn.functional.cross_entropy(logits[name][true >= 0], true[true >= 0])
            for share, true in ((0.6, own), (0.4, other))
        )
        torch.testing.assert_close(losses, expected)
        assert torch.equal(task.documents(found, f"label_{name}"), own)


def test_shares_are_of_the_beta_distribution() -> None:
    draws = torch.Generator().manual_seed(0)
    for alpha in (0.2, 1.0, 3.0):
        found = [beta(alpha, draws) for _ in range(2000)]
        assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 0.001


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_it_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [Mixup()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_and_tasks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique\.mixup\.alpha is 0\.0, must be above 0"):
        Mixup(alpha=0.0)
    with pytest.raises(ValueError, match=r"technique\.mixup\.share is 1\.5, must be in \[0, 1\]"):
        Mixup(share=1.5)
    from tests.tasks.test_synthesis import task as synthesis

    with pytest.raises(ValueError, match=r"technique mixup is for classifiers and language models, and Synthesis is neither"):
        Mixup().setup(None, synthesis(), "fit")  # type: ignore[arg-type]
    gan, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match=r"technique mixup changes continuous inputs .* ToyGan"):
        Mixup().setup(None, gan, "fit")  # type: ignore[arg-type]


def music(folder: Path) -> Any:
    return build("language_model", write_songs(folder / "songs"))


def test_a_share_of_one_is_no_mixup_of_music_bit_for_bit(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    off = fit(tmp_path / "off", lambda: build("language_model", songs), [])
    one = fit(tmp_path / "one", lambda: build("language_model", songs), [Mixup(share=1.0)])
    assert same(off["trained"], one["trained"])


def test_music_is_mixed_from_its_beginning_with_both_next_tokens(tmp_path: Path) -> None:
    task, data = music(tmp_path)
    task.eval()
    batch, technique = first_batch(data), Mixup(share=0.7, seed=3)
    found = technique.transform_batch(task, batch)
    own = task.model.embed(batch["tokens"])
    number = owners(batch["documents"])
    ranges = [(number == n).nonzero().tolist() for n in range(int(number.max()) + 1)]
    draws = technique.generator(0)
    order = torch.randperm(len(ranges), generator=draws).tolist()
    logits = task.logits(found)
    total = weight = mixed = 0.0
    for places, partner in zip(ranges, (ranges[n] for n in order), strict=True):
        for step, (row, at) in enumerate(places):
            terms = [(1.0, row, at)]
            if step < len(partner):
                terms = [(0.7, row, at), (0.3, *partner[step])]
            mixed += len(terms) - 1
            expected = sum(share * own[r, t] for share, r, t in terms)
            torch.testing.assert_close(found["embeddings"][row, at], expected)
            for share, r, t in terms:
                if (target := int(batch["targets"][r, t])) != -100:
                    total = total - share * logits[row, at].log_softmax(-1)[target].item()
                    weight += share
    assert mixed > 100
    assert task.losses(found)["nll"].item() == pytest.approx(total / weight, rel=1e-5)
    plain = task.token_nll({**batch, "embeddings": found["embeddings"]})
    torch.testing.assert_close(task.trace["token_nll"], plain)  # what others read is of the own tokens


def test_what_others_make_of_the_own_next_tokens_counts_as_its_share(tmp_path: Path) -> None:
    task, data = music(tmp_path)
    task.eval()
    plain: Any = first_batch(data)
    mixtures = (Mixup(share=0.3, seed=seed).transform_batch(task, plain) for seed in range(1000))
    mixed = next(each for each in mixtures if torch.equal(each["mixed_targets"], plain["targets"]))  # each with itself
    assert int(owners(plain["documents"]).max()) > 0
    smoothing = MusicalDomain(smoothing=0.1)
    smoothing.setup(trainer(tmp_path, max_steps=1), task, "fit")
    for name, make in (("self_paced", partial(SelfPaced, method="hard", start=0.3)), ("musical_smoothing", lambda: smoothing)):
        found = []
        for batch in (plain, mixed):
            losses = task.losses(batch)
            found.append(make().extra_losses(task, batch, losses)[name])
        assert found[0].abs() > 1e-4
        torch.testing.assert_close(found[1], 0.3 * found[0], rtol=1e-3, atol=1e-6)


def test_the_second_pass_of_rdrop_learns_both_next_tokens(tmp_path: Path) -> None:
    task, data = music(tmp_path)
    task.eval()  # both passes are the same
    mixtures = (Mixup(share=0.3, seed=seed).transform_batch(task, first_batch(data)) for seed in range(1000))
    batch: Any = next(each for each in mixtures if not torch.equal(each["mixed_targets"], each["targets"]))
    losses = task.losses(batch)
    found = RDrop().extra_losses(task, batch, losses)
    assert found["rdrop_second"].abs() < 1e-6 and found["rdrop"].abs() < 1e-6
    own = task.trace["token_nll"].sum() / (batch["targets"] != -100).sum()
    assert (own - losses["nll"]).abs() > 1e-3


def test_a_network_of_notes_is_told(tmp_path: Path) -> None:
    data = first_data(tmp_path)
    task = LanguageModel(
        model=partial(GridTransformer, dim=32, num_layers=1, num_heads=2, decoder_dim=32, decoder_layers=1),
        tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"technique mixup can't change the inputs of this LanguageModel: .*set model=tiny"):
        Mixup().setup(None, task, "fit")  # type: ignore[arg-type]


def first_data(folder: Path) -> Any:
    return music(folder)[1]
