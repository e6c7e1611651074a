"""CutMix: whole bars or frames of another example, labels by what each has in the result, nothing where nothing is cut."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.alone import alone
from etude.models.symbolic.transformer import Transformer
from etude.tasks.language_model import LanguageModel
from etude.techniques.data.cutmix import Cutmix
from etude.tokens.infilling import Bars
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.miditok_vocabulary import PITCH
from etude.tokens.musical_changes import bar_borders
from etude.tokens.row_documents import documents_of_rows
from tests.robust import first_batch, pair
from tests.songs import write_songs
from tests.test_composition import build, fit, music
from tests.toys import same


def test_nothing_is_cut_at_zero(tmp_path: Path) -> None:
    off = fit(tmp_path / "off", lambda: pair("grader", tmp_path), [])
    none = fit(tmp_path / "none", lambda: pair("grader", tmp_path), [Cutmix(most=0.0)])
    assert same(off["trained"], none["trained"])
    task, data = pair("classifier", tmp_path)
    task.eval()
    batch = first_batch(data)
    plain, cut = task.losses(batch), task.losses(Cutmix(most=0.0).transform_batch(task, batch))
    for name in plain:
        torch.testing.assert_close(cut[name], plain[name], atol=1e-5, rtol=1e-5)


def test_frames_come_with_their_truths(tmp_path: Path) -> None:
    task, data = pair("grader", tmp_path)
    batch = first_batch(data)
    found = Cutmix(most=1.0, seed=1).transform_batch(task, batch)
    moved = (found["mel"] != batch["mel"]).any(2)[0]  # [b, f]
    assert moved.any() and not moved.all()
    frames = moved.any(0).nonzero()[:, 0]
    assert len(frames) == int(frames.max() - frames.min()) + 1  # one interval
    for row in range(batch["mel"].shape[1]):
        at = int(frames[0])
        other = next(
            j for j in range(batch["mel"].shape[1]) if torch.equal(found["mel"][0, row, :, at], batch["mel"][0, j, :, at])
        )
        assert torch.equal(found["defects"][0, row][:, frames], batch["defects"][0, other][:, frames])
        share = 1 - len(frames) / moved.shape[1]
        expected = share * batch["quality"][0, row] + (1 - share) * batch["quality"][0, other]
        torch.testing.assert_close(found["quality"][0, row], expected)


def test_whole_bars_of_scores_are_exchanged(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    batch: Any = first_batch(data)
    single, tokenizer = alone(task, batch), data.tokenizer

    def bars(of: Any, row: int) -> list[tuple[int, ...]]:
        length = int((of["documents"][row] >= 0).sum())
        ids = of["tokens"][row, :length].numpy()
        return [tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(bar_borders(ids, tokenizer))]

    mixed = 0
    for seed in range(8):
        technique = Cutmix(most=1.0, seed=seed)
        found = technique.transform_batch(task, batch)
        draws = technique.generator(0)
        torch.rand((), generator=draws)
        order = torch.randperm(len(single["tokens"]), generator=draws)
        for row in range(len(single["tokens"])):
            own, other, made = bars(single, row), bars(single, int(order[row])), bars(found, row)
            assert len(made) == len(own) and all(bar in own or bar in other for bar in made)
            foreign = sum(len(bar) for place, bar in enumerate(made) if bar != own[place])
            total = int((found["documents"][row] >= 0).sum())
            assert foreign / total <= 1 - float(task.documents(found, "mixed_share")[row]) + 1e-6
            mixed += made != own
    assert mixed > 2
    assert torch.equal(task.documents(found, "mixed_label_genre"), task.documents(single, "label_genre")[order])
    assert torch.equal(task.documents(found, "label_genre"), task.documents(single, "label_genre"))
    assert all(value.isfinite() for value in task.losses(found).values())


def test_borders_of_bars() -> None:
    class Bars:
        first_body = 3

        def bar_starts(self, ids: np.ndarray) -> np.ndarray:
            return np.flatnonzero(ids == 3)

    assert bar_borders(np.array([1, 3, 4, 5, 3, 6, 2]), Bars()) == [1, 4, 6]  # 0 and 2: special tokens around the body


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_it_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [Cutmix()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_and_tasks_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"technique\.cutmix\.most is 2, must be in \[0, 1\]"):
        Cutmix(most=2)
    gan, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match=r"technique cutmix is for classifiers and language models, and ToyGan is neither"):
        Cutmix().setup(None, gan, "fit")  # type: ignore[arg-type]


def remi(folder: Path, **options: Any) -> Any:
    """A language model of REMI tokens without holes, and its data."""
    tokenizer = partial(MidiTokTokenizer, scheme="REMI", parts=8, infill=True)
    given = {"tokenizer": tokenizer, "infill": 0.0, "max_len": 1200, "transpose": None, "controls": None, **options}
    data = music(write_songs(folder / "songs"), **given)
    model = partial(Transformer, dim=16, num_layers=1, num_heads=2)
    return LanguageModel(model=model, tokenizer=data.tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2)), data


def bars_of(tokenizer: Any, ids: np.ndarray) -> list[list[tuple[int, ...]]]:
    """Pitch, velocity and duration of the notes of each bar, in any key."""
    bars = Bars(ids[ids >= tokenizer.first_body], tokenizer.table)
    found = []
    for begin, end in itertools.pairwise(bars.starts.tolist()):
        notes = np.flatnonzero(bars.kind[begin:end] == PITCH) + begin
        found.append([(int(bars.number[i]), *bars.ids[i + 1 : i + 3].tolist()) for i in notes.tolist()])
    return found


def in_c(bar: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [(note[0] - bar[0][0], *note[1:]) for note in bar]


def test_music_gets_whole_bars_of_another_piece_in_its_key(tmp_path: Path) -> None:
    task, data = remi(tmp_path)
    tokenizer, batch = data.tokenizer, first_batch(data)
    before = documents_of_rows(batch, tokenizer)
    pieces = [bars_of(tokenizer, each.ids) for each in before]
    foreign = 0
    for seed in range(6):
        found = Cutmix(most=1.0, seed=seed).transform_batch(task, batch)
        assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in batch.items()}
        for old, new in zip(before, documents_of_rows(found, tokenizer), strict=False):
            if np.array_equal(old.ids, new.ids) or len(new.ids) < len(old.ids) - 200:
                continue
            own, made = bars_of(tokenizer, old.ids), bars_of(tokenizer, new.ids)
            changed = [place for place, bar in enumerate(made) if place < len(own) and bar != own[place]]
            assert 0 not in changed and new.plain
            if not changed or not new.ends:  # cut at the end of the row
                continue
            assert len(made) == len(own) and len(own) - 1 not in changed
            assert changed == list(range(changed[0], changed[-1] + 1))
            for place in changed:
                assert any(in_c(made[place]) == in_c(bar) for piece in pieces for bar in piece if bar)
            names = [tokenizer.vocab[i].partition(":")[0] for i in new.ids.tolist() if i < tokenizer.first_body]
            assert not {"genre", "metre", "instrument"} & set(names)
            foreign += 1
    assert foreign > 3
    assert Cutmix(most=0.0).transform_batch(task, batch) is batch


def test_music_with_holes_stays_as_it_is(tmp_path: Path) -> None:
    task, data = remi(tmp_path, infill=1.0)
    batch = first_batch(data)
    whole = [each for each in documents_of_rows(batch, data.tokenizer) if not each.plain]
    assert whole
    found = documents_of_rows(Cutmix(most=1.0).transform_batch(task, batch), data.tokenizer)
    kept = {each.ids.tobytes() for each in found}
    assert sum(each.ids.tobytes() in kept for each in whole) >= len(whole) - 2  # at the end of a row some may be cut


def test_tokens_whose_bars_cannot_be_joined_are_told(tmp_path: Path) -> None:
    task, _ = remi(tmp_path, tokenizer=partial(MidiTokTokenizer, scheme="TSD"))
    with pytest.raises(ValueError, match=r"technique cutmix joins bars, .*LanguageModel has others; set tokenizer=remi"):
        Cutmix().setup(None, task, "fit")
