"""Versions of a song in two styles are compared as far as both go."""

import pytest
import torch

from etude.evaluation.styles import _as_long


def test_versions_that_differ_much_in_length_are_cut_to_the_shorter_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    """They stopped the evaluation of a folder whose files of the same name ring on for different times."""
    sources, truths = [torch.rand(4, 200), torch.rand(4, 201)], [torch.rand(4, 230), torch.rand(4, 200)]
    cut = _as_long(sources, truths)
    assert [[mel.shape[1] for mel in side] for side in cut] == [[200, 201], [200, 200]]  # nearly equal ones stay as they are
    torch.testing.assert_close(cut[1][0], truths[0][:, :200])
    assert "more than 2 %: 1 of 2;" in capsys.readouterr().err
    _as_long(sources[1:], truths[1:])
    assert not capsys.readouterr().err
