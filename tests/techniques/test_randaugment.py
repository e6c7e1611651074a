"""RandAugment: each operation does what it says to scores and mels, labels stay, and what does not fit is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.core.alone import alone
from etude.techniques.data.randaugment import MEL_OPERATIONS, OF_MELS, RandAugment
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.musical_changes import OF_SCORES, changed_score
from etude.tokens.row_documents import documents_of_rows, places
from etude.tokens.rows import packed_rows
from tests.robust import first_batch, pair
from tests.songs import song, write_songs
from tests.tasks.test_classifier import task as small_classifier
from tests.techniques.test_cutmix import bars_of, remi
from tests.test_composition import build, fit
from tests.tokens.test_infilling import quartet
from tests.toys import same


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_operations_on_scores(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    tokenizer: Any = data.tokenizer
    single = alone(task, first_batch(data))
    length = int((single["documents"][0] >= 0).sum())
    ids, place = single["tokens"][0, :length].numpy(), np.arange(length)
    body = ids[ids >= tokenizer.first_body]
    bars = len(tokenizer.bar_starts(body))
    changed = set()
    for seed in range(6):
        for name in OF_SCORES:
            made, moved = changed_score(name, tokenizer, ids, place, 1.0, draws(seed))
            kept = tokenizer.bar_starts(made[made >= tokenizer.first_body])
            if name == "drop_bars":
                assert bars / 2 - 1 <= len(kept) <= bars and (np.diff(moved) > 0).all() and np.array_equal(made, ids[moved])
            elif name == "swap_bars":
                assert sorted(moved.tolist()) == place.tolist() and len(kept) == bars and np.array_equal(made, ids[moved])
            else:
                assert np.array_equal(moved, place) and len(kept) == bars
            if name == "transpose" and not np.array_equal(made, ids):
                shifts = [n for n in range(-6, 7) if np.array_equal(tokenizer.transposition(n)[ids], made)]
                assert len(shifts) == 1
            changed |= {name} if len(made) != len(ids) or not np.array_equal(made, ids) else set()
            still, _ = changed_score(name, tokenizer, ids, place, 0.0, draws(seed))
            assert name == "swap_bars" or np.array_equal(still, ids)
    assert {"transpose", "drop_bars", "swap_bars"} <= changed


def test_a_batch_of_scores_keeps_its_labels_and_its_features_fit(tmp_path: Path) -> None:
    task, data = pair("classifier", tmp_path)
    batch = first_batch(data)
    single = alone(task, batch)
    found = RandAugment(num=3, magnitude=1.0).transform_batch(task, batch)
    assert not torch.equal(found["tokens"], single["tokens"][:, : found["tokens"].shape[1]])
    for name in ("label_genre", "label_half", "piece"):
        assert torch.equal(task.documents(found, name), task.documents(single, name))
    for row in range(len(found["tokens"])):
        length = int((found["documents"][row] >= 0).sum())
        for name, values in data.tokenizer.features(found["tokens"][row, :length].numpy()).items():
            assert found[f"feature_{name}"][row, :length].tolist() == values.tolist()
        assert found["positions"][row, :length].tolist() == list(range(length))


def test_operations_on_mels() -> None:
    mel = torch.randn(16, 20, generator=draws(9))
    for name in OF_MELS:
        made = MEL_OPERATIONS[name](mel, 1.0, draws(1))
        assert made.shape == mel.shape and not torch.equal(made, mel)
        assert torch.allclose(MEL_OPERATIONS[name](mel, 0.0, draws(1)), mel)
        difference = made - mel
        if name == "level":
            assert difference.std() < 1e-6 and difference.abs().max() <= 0.3
        if name == "tilt":
            assert difference.std(1).max() < 1e-6 and difference[0].mean() * difference[-1].mean() < 0
        if name == "noise":
            assert difference.std() <= 0.11
        if name.startswith("mask"):
            hidden = (made == mel.mean()).all(1 if name == "mask_bands" else 0)
            assert 0 < hidden.sum() <= 0.4 * len(hidden) and torch.equal(made == mel.mean(), difference != 0)


@pytest.mark.parametrize("kind", ["classifier", "grader"])
def test_it_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: pair(kind, tmp_path), [RandAugment()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"]) and same(whole["saved"], rest["saved"])


def test_bad_options_and_tasks_are_told(tmp_path: Path) -> None:
    for options, told in (
        ({"num": 0}, "num is 0, must be at least 1"),
        ({"magnitude": 2.0}, r"magnitude is 2\.0, must be in \[0, 1\]"),
        ({"operations": []}, "operations is empty"),
    ):
        given: dict[str, Any] = dict(options)
        with pytest.raises(ValueError, match=rf"technique\.randaugment\.{told}"):
            RandAugment(**given)
    gan, _ = build("gan", tmp_path)
    with pytest.raises(ValueError, match="technique randaugment is for classifiers and language models, and ToyGan is neither"):
        RandAugment().setup(None, gan, "fit")  # type: ignore[arg-type]
    scores, (mels, _) = small_classifier(labels={"key": ("C major", "G major")}), pair("grader", tmp_path)
    with pytest.raises(ValueError, match="Grader has no transpose; choose among level"):
        RandAugment(operations=["transpose"]).setup(None, mels, "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transpose would change the label key of this Classifier"):
        RandAugment(operations=["transpose"]).setup(None, scores, "fit")  # type: ignore[arg-type]
    assert "transpose" not in RandAugment().fitting(scores)


def test_music_at_magnitude_zero_is_the_music_bit_for_bit(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs")
    off = fit(tmp_path / "off", lambda: build("language_model", songs), [])
    none = RandAugment(magnitude=0.0, operations=["transpose", "drop_bars"])
    assert same(off["trained"], fit(tmp_path / "none", lambda: build("language_model", songs), [none])["trained"])


@pytest.mark.parametrize("infill", [0.0, 1.0])
def test_music_is_transposed_with_its_key_and_its_holes(tmp_path: Path, infill: float) -> None:
    task, data = remi(tmp_path, infill=infill)
    batch: Any = first_batch(data)
    found = RandAugment(num=1, magnitude=1.0, operations=["transpose"]).transform_batch(task, batch)
    assert all(torch.equal(found[name], value) for name, value in batch.items() if name not in ("tokens", "targets"))
    tables = [data.tokenizer.transposition(n) for n in range(-6, 7)]
    shifts = set()
    before, after = (documents_of_rows(each, data.tokenizer) for each in (batch, found))
    for old, new in zip(before, after, strict=True):
        mine = [n - 6 for n, table in enumerate(tables) if np.array_equal(table[old.ids[old.ids >= 0]], new.ids[new.ids >= 0])]
        assert len(mine) == 1 and old.plain == new.plain
        shifts.update(mine)
    assert len(shifts) > 2 and infill == float(any(not each.plain for each in before))


def test_music_loses_bars_and_its_length_follows(tmp_path: Path) -> None:
    task, data = remi(tmp_path, controls=["num_bars"], control_dropout=0.0)
    batch, tokenizer = first_batch(data), data.tokenizer
    found = RandAugment(num=2, magnitude=1.0, operations=["drop_bars", "swap_bars"]).transform_batch(task, batch)
    before, after = (documents_of_rows(each, tokenizer) for each in (batch, found))
    shorter = 0
    for old, new in zip(before, after, strict=False):
        own, made = bars_of(tokenizer, old.ids), bars_of(tokenizer, new.ids)
        assert made[0] == own[0] and all(bar in own for bar in made[:-1]) and new.plain
        if new.begins and new.ends:
            assert made[-1] == own[-1]
            assert f"bars:{len(made)}" in [tokenizer.vocab[i] for i in new.ids.tolist()]
            shorter += len(made) < len(own)
    assert shorter > 1


def test_music_keeps_its_instruments(tmp_path: Path) -> None:
    task, data = remi(tmp_path)
    body = data.tokenizer.encode(quartet(3))  # the last player plays in the middle bar alone
    names = [data.tokenizer.vocab[i] for i in body.tolist()]
    batch = packed_rows(data.tokenizer, [torch.from_numpy(body.astype(np.int64))], rows=1, length=len(body) + 2)
    gone = RandAugment(num=1, magnitude=1.0, operations=["drop_bars"])
    changed = [
        not torch.equal(RandAugment.transform_batch(gone, at(task, n), batch)["tokens"], batch["tokens"]) for n in range(8)
    ]
    assert any(changed) and any(name == "Program_42" for name in names)
    cello = quartet(3)  # and now the last player plays in the middle bar alone
    for track in cello.tracks:
        if track.program == 42:
            track.notes = type(track.notes)([note for note in track.notes if 1440 <= note.time < 2880])
    body = data.tokenizer.encode(cello)
    batch = packed_rows(data.tokenizer, [torch.from_numpy(body.astype(np.int64))], rows=1, length=len(body) + 2)
    assert all(torch.equal(gone.transform_batch(at(task, n), batch)["tokens"], batch["tokens"]) for n in range(8))


def at(task: Any, batches: int) -> Any:
    task.batches_trained = batches
    return task


def test_operations_that_music_cannot_have_are_told(tmp_path: Path) -> None:
    grid, _ = build("language_model", write_songs(tmp_path / "songs"))
    task: Any = grid
    assert RandAugment().fitting(task) == ("transpose", "drop_bars", "swap_bars")
    with pytest.raises(ValueError, match="velocity changes nothing in the tokens of this LanguageModel; leave it out"):
        RandAugment(operations=["velocity"]).fitting(task)
    task.tokenizer = MidiTokTokenizer(scheme="Octuple")
    assert RandAugment().fitting(task) == ("transpose", "tempo", "velocity")
    with pytest.raises(ValueError, match="drop_bars needs tokens of REMI without plans, or four voices, instead of those"):
        RandAugment(operations=["drop_bars"]).fitting(task)


def test_music_of_byte_pairs_is_merged_anew(tmp_path: Path) -> None:
    task, data = remi(tmp_path)
    tokenizer = MidiTokTokenizer(genres=data.tokenizer.genres, bpe_vocab_size=900)
    bodies = [np.asarray(tokenizer.encode(song(number))) for number in range(6)]
    tokenizer.train_bpe(bodies)
    merged = [torch.from_numpy(tokenizer.compress(body).astype(np.int64)) for body in bodies]
    batch, technique = packed_rows(tokenizer, merged, rows=2, length=900), RandAugment(num=1, magnitude=1.0)
    task.tokenizer = tokenizer
    before = documents_of_rows(batch, tokenizer)
    found = technique.transform_batch(task, batch)
    assert not torch.equal(found["tokens"], batch["tokens"])
    tables = [tokenizer.transposition(n) for n in range(-6, 7)]
    moved = RandAugment(num=1, magnitude=1.0, operations=["transpose"]).transform_batch(task, batch)
    after = documents_of_rows(moved, tokenizer)
    old_at = dict(zip(places(before), before, strict=True))
    for place, new in zip(places(after), after, strict=True):
        own, made = tokenizer.expand(old_at[place].ids), tokenizer.expand(new.ids)
        kept = min(len(own), len(made)) if new.ends else len(made) - 1
        assert sum(np.array_equal(table[own][:kept], made[:kept]) for table in tables) == 1
