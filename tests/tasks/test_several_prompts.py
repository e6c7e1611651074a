"""Several prompts of different lengths in one batch: each goes on as it would alone."""

import functools
from typing import Any

import pytest
import torch
from symusic import Score, TimeSignature

from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.music.score import trim
from etude.tasks.language_model import LanguageModel
from etude.tasks.openings import Opening, Rows
from etude.tokens.grammar import BOS, PAD, Decoder, JoinedDecoder
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.tokens.test_infilling import quartet

TOLERANCE = 1e-5  # of the logits beside other prompts, in float32; they are of the order of 1


def language_model(tokenizer: Any, **changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    network = functools.partial(Transformer, **{"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2} | changes)
    return LanguageModel(model=network, tokenizer=tokenizer, optimizer=torch.optim.AdamW)


@pytest.fixture(scope="module")
def task() -> LanguageModel:
    return language_model(MidiTokTokenizer(genres=["folk"], parts=4))


def prompts() -> list[Score]:
    return [trim(quartet(4), num_bars=bars) for bars in (1, 4, 2)]


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_logits_beside_longer_prompts_are_those_of_the_prompt_alone(kv_heads: int) -> None:
    torch.manual_seed(0)
    model = Transformer(vocab_size=11, dim=32, num_layers=2, num_heads=4, num_kv_heads=kv_heads).eval()
    rows = [torch.randint(3, 11, (length,)) for length in (3, 9, 6)]
    more = torch.randint(3, 11, (3, 4))
    padding = torch.tensor([9 - len(row) for row in rows])
    together = torch.stack([torch.cat([torch.full((9 - len(row),), PAD), row]) for row in rows])
    cache = model.new_cache(3, 13)
    cache.pad(padding)
    with torch.inference_mode():
        found = [model(together, cache=cache)[:, -1]] + [model(more[:, i : i + 1], cache=cache)[:, -1] for i in range(4)]
        for number, row in enumerate(rows):
            whole = model(torch.cat([row, more[number]])[None])[0]
            expected = whole[len(row) - 1 :]
            torch.testing.assert_close(torch.stack(found)[:, number], expected, atol=TOLERANCE, rtol=0)


def test_padding_is_never_seen_and_several_tokens_at_once_agree_with_single_ones() -> None:
    torch.manual_seed(0)
    model = Transformer(vocab_size=11, dim=16, num_layers=1, num_heads=2).eval()
    tokens = torch.randint(3, 11, (2, 8))
    logits = []
    for filling in (PAD, 7):
        row = tokens.clone()
        row[0, :3] = filling
        cache = model.new_cache(2, 8)
        cache.pad(torch.tensor([3, 0]))
        with torch.inference_mode():
            logits.append(torch.cat([model(row[:, :5], cache=cache), model(row[:, 5:], cache=cache)], 1)[:, 3:])
    assert torch.equal(*logits)
    assert logits[0].isfinite().all()


def test_each_prompt_is_continued_as_it_would_be_alone(task: LanguageModel) -> None:
    options: Any = {"num_samples": 2, "num_bars": 6, "max_new_tokens": 120, "labels": {"genre": "folk"}}
    for seed in range(3):
        together = task.sample(prompt=prompts(), seed=seed, **options)
        alone = [sample for prompt in prompts() for sample in task.sample(prompt=prompt, seed=seed, **options)]
        assert [score.dumps_midi() for score in together] == [score.dumps_midi() for score in alone]
    assert task.sample(prompt=[]) == []


def test_the_grid_continues_prompts_of_different_lengths_too() -> None:
    torch.manual_seed(0)
    network = functools.partial(GridTransformer, dim=128, num_layers=1, num_heads=2, decoder_dim=16, decoder_layers=1)
    task = LanguageModel(model=network, tokenizer=SatbGrid(), optimizer=torch.optim.AdamW)
    chorale = quartet(4)
    chorale.time_signatures = [TimeSignature(0, 4, 4)]
    scores = [trim(chorale, num_bars=bars) for bars in (2, 1, 2)]
    options: Any = {"num_samples": 1, "max_new_tokens": 24, "seed": 1}
    together = task.sample(prompt=scores, **options)
    alone = [sample for prompt in scores for sample in task.sample(prompt=prompt, **options)]
    assert [score.dumps_midi() for score in together] == [score.dumps_midi() for score in alone]


def test_rows_begin_with_padding_and_the_decoder_follows_each(task: LanguageModel) -> None:
    openings = [Opening.of(prompt, tokenizer=task.tokenizer, controls=[]) for prompt in prompts()]
    rows = Rows.of(openings, 2, tokenizer=task.tokenizer, labels={}, num_bars=None)
    assert rows.tokens_bt.shape == (6, max(len(opening.ids) for opening in openings)) and rows.padding_b is not None
    for row, padding, opening in zip(
        rows.tokens_bt.tolist(), rows.padding_b.tolist(), [o for o in openings for _ in "12"], strict=True
    ):
        assert row[:padding] == [PAD] * padding and row[padding:] == opening.ids and row[padding] == BOS
    for ids in rows.tokens_bt.numpy().T:
        rows.decoder.push(ids)
    for number, opening in enumerate(openings):
        single = task.tokenizer.decoder(1, prompt=opening.body)
        for token in opening.ids:
            single.push([token])
        assert (rows.decoder.allowed()[2 * number] == single.allowed()[0]).all()
        assert {name: v[2 * number] for name, v in rows.decoder.features().items()} == {
            n: v[0] for n, v in single.features().items()
        }


def test_a_joined_decoder_ends_row_by_row() -> None:
    tokenizer = SatbGrid()
    joined = JoinedDecoder([Decoder(tokenizer.grammar(), batch=n, first_body=tokenizer.first_body) for n in (1, 2)])
    joined.push([2, 1, 2])
    assert joined.finished.tolist() == [True, False, True] and joined.allowed().shape == (3, len(tokenizer))
