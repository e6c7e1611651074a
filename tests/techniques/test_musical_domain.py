"""The terms of music theory on real batches: sums are the smoothed cross-entropy, rules find what is wrong."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from symusic import Note, Score, Tempo, Track

from etude.core.task import Task
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.losses.musical import pitch_smoothing
from etude.models.symbolic.transformer import Transformer
from etude.music.complexity import complexity
from etude.tasks.language_model import LanguageModel
from etude.techniques.loss.musical_domain import MusicalDomain
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.rows import packed_rows
from etude.tokens.satb import SatbGrid
from tests.toys import ToyGan, trainer

CONF = Path(__file__).parents[2] / "conf"


def matrix_options(kind: str, folder: Path, build: Callable[[], tuple[Task, Any]]) -> dict[str, Any]:
    return {"voices": 0.1, "parallels": 0.1, "equivariance": 0.1} if kind == "language_model" else {}


def task_of(tokenizer: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = partial(Transformer, dim=8, num_layers=1, num_heads=2)
    return LanguageModel(model=model, tokenizer=tokenizer, optimizer=torch.optim.SGD)


def ready(tokenizer: Any, **options: Any) -> tuple[MusicalDomain, LanguageModel]:
    technique, task = MusicalDomain(**options), task_of(tokenizer)
    technique.setup(None, task, "fit")  # type: ignore[arg-type]
    return technique, task


def chorale(tokenizer: SatbGrid, frames: list[list[int]]) -> torch.Tensor:
    ids = tokenizer.encode_frames(torch.tensor(frames).numpy())
    return torch.tensor(ids, dtype=torch.int64)


GRID = SatbGrid(genres=["a"], bar_steps=4)
SONG = chorale(GRID, [[72, 67, 64, 48], [74, 65, 62, 47], [76, 67, 60, 48], [74, 67, 59, 43]])


def test_with_the_tasks_own_term_it_is_the_smoothed_cross_entropy() -> None:
    technique, task = ready(GRID, smoothing=0.1)
    batch = packed_rows(GRID, [SONG], rows=2, length=17)
    losses = task.losses(batch)
    term = technique.extra_losses(task, batch, losses)["musical_smoothing"]
    counted = batch["targets"] != -100
    log_p, targets = F.log_softmax(task.trace["logits"][counted].float(), -1), batch["targets"][counted]
    wanted = torch.zeros(len(targets), len(GRID))
    for row, token in enumerate(targets.tolist()):
        pitch = int(technique._pitch_v[token])
        wanted[row, token] = 1.0
        if pitch >= 0:
            share = pitch_smoothing()[0, pitch][technique._pitch_of_ids]
            wanted[row, token] = 0.9
            wanted[row, technique._pitch_ids] += 0.1 * share / share.sum()
    assert torch.allclose(wanted.sum(-1), torch.ones(len(targets)))
    assert torch.allclose(losses["nll"] + term, -(wanted * log_p).sum(-1).mean(), atol=1e-5)


@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "Octuple"])
def test_every_group_of_tokens_is_of_one_kind(scheme: str) -> None:
    tokenizer = MidiTokTokenizer(genres=["a"], scheme=scheme)
    technique, _ = ready(tokenizer)
    kinds = [{tokenizer.vocab[i].partition("_")[0] for i in ids.tolist()} for ids, _ in technique._groups]
    assert (all(len(kind) == 1 for kind in kinds) and {"Duration"} in kinds) or scheme == "MIDILike"
    assert {"Pitch"} in kinds or {"NoteOn"} in kinds
    assert all(len(table) == 1 or table.shape[:2] == (12, 128) for _, table in technique._groups)  # however many byte pairs


def test_voice_leading_sees_the_real_past() -> None:
    technique, task = ready(GRID, smoothing=0.0, voices=1.0, parallels=1.0)
    good = chorale(GRID, [[72, 67, 64, 48], [71, 67, 62, 50]])  # the outer voices in contrary motion
    bad = chorale(GRID, [[72, 67, 64, 48], [74, 69, 66, 50]])  # everything a whole tone up
    found = []
    for song in (good, bad):
        batch = packed_rows(GRID, [song], rows=1, length=9)
        logits = torch.full((1, 9, len(GRID)), -30.0)
        logits.scatter_(2, batch["targets"].clamp(min=0)[..., None], 30.0)  # a model that is sure of what follows
        task.trace = {"logits": logits.requires_grad_()}
        found.append(technique._voice_leading(task, batch))
    values = [{name: term.item() for name, term in terms.items()} for terms in found]
    assert values[0]["musical_parallels"] < 1e-6 and values[1]["musical_parallels"] > 0.4
    assert values[0]["musical_voices"] < 1e-6
    found[1]["musical_parallels"].backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, r"must be in \[0, 1\)"),
        ({"voices": -1.0}, "must be 0 or more"),
        ({"equivariance_every": 0}, "at least 1"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MusicalDomain(**options)


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"voices and parallels need four voices.*MidiTokTokenizer; choose tokenizer=satb"):
        ready(MidiTokTokenizer(genres=["a"], scheme="REMI"), voices=1.0)
    with pytest.raises(ValueError, match="ToyGan has none"):
        MusicalDomain().setup(trainer(tmp_path, max_steps=1), ToyGan(), "fit")


@pytest.mark.parametrize("genre", sorted(path.stem for path in (CONF / "genre").glob("*.yaml")))
def test_presets_add_the_technique_and_leave_the_others(genre: str) -> None:
    importlib.import_module("etude.run.programs")  # its resolver

    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("train", overrides=[f"genre={genre}"]).technique
        assert list(chosen) == ["ema", "musical_domain"] and chosen.musical_domain.smoothing > 0
        assert compose("train", overrides=[f"genre={genre}", "technique.musical_domain.smoothing=0.3"]).technique.musical_domain[
            "smoothing"
        ] == pytest.approx(0.3)


class Player:
    """What a trainer would bring."""

    def __init__(self, datamodule: Any) -> None:
        self.datamodule = datamodule


def test_presets_vary_keys_tempi_and_loudness_and_leave_swing_and_syncopation(tmp_path: Path) -> None:
    root = tmp_path / "scores"
    root.mkdir()
    for number in range(6):
        score = Score(480)
        track = Track(program=0)
        for beat in range(24):  # swung eighths, some tied over the beat
            track.notes.append(Note(beat * 480, 320, 60 + (beat + number) % 9, 70 + number))
            if (beat + number) % 3:
                track.notes.append(Note(beat * 480 + 320, 400, 67, 60))
        score.tracks.append(track)
        score.tempos.append(Tempo(0, 120.0))
        score.dump_midi(root / f"{number}.mid")
    make = partial(MidiTokTokenizer, scheme="REMI")
    options: dict[str, Any] = {
        "corpus": Folder(root=str(root)), "tokenizer": make, "cache_dir": tmp_path / "cache", "max_len": 256, "batch_size": 2,
        "controls": [], "split": [1, 0, 0],
    }  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        ranges = compose("train", overrides=["genre=folk"]).technique.musical_domain
    heard = []
    for varied in (False, True):
        data = MusicDataModule(**options)
        if varied:
            chosen = {name: ranges[name] for name in ("transpose", "tempo_scale", "velocity_shift")}
            MusicalDomain(**chosen).setup(Player(data), task_of(data.tokenizer), "fit")  # type: ignore[arg-type]
        documents = data._documents("train", data.augmentation)
        how = documents.variations(np.ones(len(documents.view), np.int64), np.arange(len(documents.view)))
        heard.append([data.tokenizer.decode(documents.body(piece, how[piece])) for piece in range(len(documents.view))])
    changed = 0
    for plain, other in zip(*heard, strict=True):
        notes, moved = (score.tracks[0].notes.numpy() for score in (plain, other))
        assert np.array_equal(notes["time"], moved["time"]) and np.array_equal(notes["duration"], moved["duration"])
        before, after = complexity(plain), complexity(other)
        assert before["rhythmic_syncopation"] == after["rhythmic_syncopation"] > 0
        changed += not np.array_equal(notes["pitch"], moved["pitch"])
    assert changed >= 4


def test_ranges_of_augmentation_want_data_that_has_some(tmp_path: Path) -> None:
    technique = MusicalDomain(tempo_scale=[0.9, 1.1])
    with pytest.raises(ValueError, match="no score augmentation; leave out transpose, tempo_scale"):
        technique.setup(Player(None), task_of(GRID), "fit")  # type: ignore[arg-type]
    data = MusicDataModule(
        corpus=Folder(root=str(tmp_path)), tokenizer=partial(MidiTokTokenizer, scheme="REMI"), cache_dir=tmp_path
    )
    with pytest.raises(ValueError, match=r"technique.musical_domain.tempo_scale=\[1.1, 0.9\] must be"):
        MusicalDomain(tempo_scale=[1.1, 0.9]).setup(Player(data), task_of(GRID), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="velocity_shift=-1 must be at least 0"):
        MusicalDomain(velocity_shift=-1).setup(Player(data), task_of(GRID), "fit")  # type: ignore[arg-type]
