"""PatchNCE against a loop, feature matching against hand values; neither sends a gradient where it should not."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.losses.feature_matching import feature_matching
from etude.losses.patch_nce import patch_nce


def test_patch_nce_is_the_formula() -> None:
    query, key = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    terms = []
    for b in range(2):
        for i in range(5):
            logits = torch.stack([F.cosine_similarity(query[b, i], key[b, j], dim=0) for j in range(5)]) / 0.2
            terms.append(-torch.log_softmax(logits, dim=0)[i])
    torch.testing.assert_close(patch_nce(query, key, temperature=0.2), torch.stack(terms).mean())


def test_patch_nce_is_near_zero_for_distinct_places_that_match_and_ln_p_for_none() -> None:
    places = torch.eye(6)[None]
    assert patch_nce(places, places).item() < 1e-4
    assert patch_nce(torch.ones(1, 6, 6), places).item() == pytest.approx(math.log(6))


def test_patch_nce_negatives_are_of_the_sample_alone() -> None:
    query, key = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    alone = torch.stack([patch_nce(query[i : i + 1], key[i : i + 1]) for i in range(3)]).mean()
    torch.testing.assert_close(patch_nce(query, key), alone)


def test_patch_nce_gradient_reaches_queries_only() -> None:
    query, key = torch.randn(1, 4, 8, requires_grad=True), torch.randn(1, 4, 8, requires_grad=True)
    patch_nce(query, key).backward()
    assert query.grad is not None and query.grad.abs().sum() > 0 and key.grad is None


def test_patch_nce_tells_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="both as"):
        patch_nce(torch.zeros(1, 4, 8), torch.zeros(1, 5, 8))
    with pytest.raises(ValueError, match="temperature is 0"):
        patch_nce(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), temperature=0)


def test_feature_matching_is_the_mean_over_layers_whatever_their_size() -> None:
    fake = [[torch.ones(1, 8), torch.zeros(1, 2)], [torch.full((1, 1), 3.0)]]
    real = [[torch.zeros(1, 8), torch.zeros(1, 2)], [torch.full((1, 1), 1.0)]]
    assert feature_matching(fake, real).item() == pytest.approx((1 + 0 + 2) / 3)
    assert feature_matching(fake, fake).item() == 0


def test_feature_matching_gradient_reaches_the_fake_only() -> None:
    fake, real = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    feature_matching([[fake]], [[real]]).backward()
    assert fake.grad is not None and (fake.grad == 0.5).all() and real.grad is None


def test_feature_matching_tells_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"fake has \[1\] layers a scale and real \[2\]"):
        feature_matching([[torch.zeros(1)]], [[torch.zeros(1)] * 2])
    with pytest.raises(ValueError, match="shapes"):
        feature_matching([[torch.zeros(1)]], [[torch.zeros(2)]])
    with pytest.raises(ValueError, match="one discriminator"):
        feature_matching([], [])
