"""benchmarks/supervised.py: the same places of the same tunes in both styles, and a loss that is the distance to the truth."""

import importlib
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from etude.models.mel.discriminators import FrameDiscriminator
from etude.models.mel.generator import MelGenerator
from tests.data.audio.files import inline
from tests.data.audio.test_arranged import CONTRACT, TINY, songs

SEGMENT = 32


@pytest.fixture(scope="module")
def supervised() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))  # type: ignore[no-untyped-call]
        return importlib.import_module("supervised")


@pytest.fixture(scope="module")
def data(supervised: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Two tunes of folk and two of jazz, each rendered in both; rock is a third style of the corpus."""
    with pytest.MonkeyPatch.context() as patch:
        inline(patch)
        made = supervised.PairedStyles(
            corpus=supervised.PairedTunes(**TINY, both=("folk", "jazz")), contract=CONTRACT, styles=["folk", "jazz"],
            cache_dir=str(tmp_path_factory.mktemp("cache")), segment_frames=SEGMENT, batch_size=5, batches_per_epoch=3,
            prepare_workers=1,
        )  # fmt: skip
        made.prepare()
        return made


def places(data: object, style: str, segment_mf: Tensor) -> set[tuple[int, int]]:
    """Returns the tunes and first frames of a segment of natural-log mels; music repeats, so there may be several."""
    found = set()
    for piece in range(data.num_pieces("train", style)):  # type: ignore[attr-defined]
        windows_mnf = data.log_mel("train", style, piece).unfold(1, SEGMENT, 1)  # type: ignore[attr-defined]
        distance_n = (windows_mnf - segment_mf[:, None]).abs().amax(dim=(0, 2))
        found |= {(piece, start) for start in torch.nonzero(distance_n < 1e-3)[:, 0].tolist()}
    return found


def test_both_styles_have_the_same_places_of_the_same_tunes(data: object) -> None:
    tunes = [songs(data, "train", style) for style in ("folk", "jazz")]  # type: ignore[arg-type]
    assert tunes[0] == tunes[1] and len(set(tunes[0])) == 4
    drawn = set()
    for batch in data.train_dataloader():  # type: ignore[attr-defined]
        mel_sbmf = CONTRACT.denormalise(batch["mel"])
        for row in range(5):
            folk, jazz = (places(data, style, mel_sbmf[s, row]) for s, style in enumerate(("folk", "jazz")))
            assert folk & jazz
            drawn |= folk & jazz
    assert len(drawn) > 10 and len({piece for piece, _ in drawn}) > 1


def test_the_loss_is_the_distance_to_the_truth_and_trains_the_generators_alone(supervised: ModuleType, data: object) -> None:
    task = supervised.Supervised(
        model=partial(MelGenerator, dim=8, num_blocks=1), discriminator=partial(FrameDiscriminator, channels=8),
        optimizer=partial(torch.optim.Adam, lr=1e-3), **data.parts,  # type: ignore[attr-defined]
    )  # fmt: skip
    batch = next(iter(data.train_dataloader()))  # type: ignore[attr-defined]
    folk, jazz = CONTRACT.denormalise(batch["mel"])
    losses = task.losses(batch)
    errors = [task.affine(folk, source="folk", target="jazz") - jazz, task.affine(jazz, source="jazz", target="folk") - folk]
    assert losses.keys() == {"generator/paired"}  # an untrained generator is the affine map
    assert losses["generator/paired"].item() == pytest.approx(float(torch.cat(errors).abs().mean()), rel=1e-4)
    losses["generator/paired"].backward()
    assert all(generator.outlet.weight.grad.abs().sum() > 0 for generator in task.generators)
    assert all(parameter.grad is None for parameter in task.judge.parameters())


def test_the_configuration_names_the_pair(supervised: ModuleType) -> None:
    known = OmegaConf.create({"_target_": "a", "corpus": {"_target_": "b", "songs_per_style": 60}, "styles": None})
    OmegaConf.set_struct(known, True)
    made = supervised.paired_data(known, ["folk", "rock"])
    assert made.corpus.both == ["folk", "rock"] and made.corpus.songs_per_style == 60
    assert (made._target_, made.corpus._target_) == ("supervised.PairedStyles", "supervised.PairedTunes")


def test_the_report_compares_it_with_training_without_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))  # type: ignore[no-untyped-call]
    report = importlib.import_module("report_styles")
    values = {"mcd_db": 10.0, "frechet_bel2": 0.1, "onset_f": 0.9, "chroma_r": 0.8, "steps": 4000, "command": "x", "commit": "y"}
    shared = {**values, "date": "d", "hardware": "h", "load": 1.0, "budget_s": 90, "row": "model", "source": "folk"}
    paired = [{**shared, "target": target, "l1_nats": 0.25} for target in ("rock", "jazz")]
    unpaired = [{**shared, "target": "rock", "l1_nats": l1} for l1 in (0.4, 0.5)]
    unpaired += [{**shared, "target": "jazz", "l1_nats": 0.6}]
    lines = report.bound(unpaired, paired)[2].splitlines()
    assert "| 1.8, reached |" in lines[2] and "| 2.4, **missed** |" in lines[3] and len(lines) == 4
    run = {"split": "val", "recipe": "default", "asked_steps": 5000, "stops": True, "seed": 0}
    table = report.lengths([{**unpaired[0], **run}, {**unpaired[1], **run, "seed": 1, "steps": 3000}])[1]
    assert "folk to rock, val | default, 5000 steps, ended after 3000, 4000 | 2 | 0.450 ± 0.071 |" in table
    assert report.lengths([]) == report.bound(unpaired, []) == []
