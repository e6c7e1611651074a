"""A latent vector for each bar: what the network computes, what is learnt, and what is written from latents."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from symusic import Score, TimeSignature
from torch.distributions import Normal, kl_divergence

from etude.core.checkpoints import LastCheckpoint
from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.generation.requests import bars_begun
from etude.models.symbolic.transformer import Transformer
from etude.models.symbolic.transformer_vae import Posterior, TransformerVae
from etude.tasks.vae import Vae, between, kl_of_dimensions
from etude.tokens.grammar import BOS
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import song, write_songs
from tests.techniques.test_swa import Stop
from tests.toys import same, trainer, weights

SMALL = partial(TransformerVae, dim=32, num_layers=1, encoder_layers=1, num_heads=2, hidden_dim=32, latent_dim=8)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("vae") / "songs")


def music(songs: Path) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=MidiTokTokenizer, cache_dir=str(songs.parent / "cache"), max_len=512,
        max_eval_len=512, batch_size=2, batches_per_epoch=6, prepare_workers=1, split=(0.6, 0.3, 0.1), seed=1, infill=0.0,
    )  # fmt: skip


def vae(tokenizer: Any, **options: Any) -> Vae:
    torch.manual_seed(0)
    return Vae(model=SMALL, tokenizer=tokenizer, optimizer=partial(torch.optim.AdamW, lr=1e-2), seed=1, **options)


@pytest.fixture(scope="module")
def trained(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Vae:
    data = music(songs)
    task = vae(data.tokenizer, cycles=1, trained_labels=data.trained_labels())
    run = trainer(tmp_path_factory.mktemp("trained"), max_steps=60, callbacks=[], limit_val_batches=0)
    run.fit(task, data)
    return task.eval()


def batch_of(task: Vae, *scores: Score) -> dict[str, torch.Tensor]:
    """Scores one after another in one row."""
    tokens, documents, positions = [], [], []
    features: dict[str, list[int]] = {name: [] for name in task.tokenizer.feature_sizes}
    for number, score in enumerate(scores):
        body = task.tokenizer.encode(score)
        tokens += [BOS, *body.tolist()]
        documents += [number] * (len(body) + 1)
        positions += range(len(body) + 1)
        for name, values in task.tokenizer.features(body).items():
            features[name] += [0, *values.tolist()]
    targets = [*tokens[1:], -100]
    named = {"tokens": tokens, "documents": documents, "positions": positions, "targets": targets}
    named |= {f"feature_{name}": values for name, values in features.items()}
    return {
        name: torch.tensor([values]) for name, values in {**named, **{f"feature_{n}": v for n, v in features.items()}}.items()
    }


def test_each_bar_of_each_piece_has_a_latent_of_its_own(trained: Vae) -> None:
    first, second = song(1, bars=3), song(2, bars=2)
    batch = batch_of(trained, first, second)
    bar, real = trained.model.bars(batch["tokens"], batch["documents"])  # type: ignore[operator]
    assert len(real) == 5 and real.all()
    kinds = trained.tokenizer.bar_starts(trained.tokenizer.encode(first))  # type: ignore[attr-defined]
    starts = (bar[0, 1:] != bar[0, :-1]).nonzero().flatten() + 1
    assert starts[:2].tolist() == [1 + k for k in kinds[1:].tolist()]  # BOS and the first bar are one
    found = trained.posterior(batch)
    together = torch.cat([found.mean, trained.attributes(batch, found)], dim=1)
    alone = torch.cat([trained.encode_score(first), trained.encode_score(second)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_writing_token_by_token_equals_decoding_at_once(trained: Vae) -> None:
    batch, model = batch_of(trained, song(3, bars=3)), trained.model
    assert isinstance(model, TransformerVae)
    features = {name: batch[f"feature_{name}"] for name in trained.tokenizer.feature_sizes}
    codes = torch.randn(3, 10)
    bar, _ = model.bars(batch["tokens"], batch["documents"])
    with torch.inference_mode():
        whole = model.decode(batch["tokens"], codes, bar, documents_bt=batch["documents"], features=features)
        with model.generating_from(codes[None]):
            cache = model.new_cache(1, batch["tokens"].shape[1])
        steps = [
            model(batch["tokens"][:, t : t + 1], features={n: f[:, t : t + 1] for n, f in features.items()}, cache=cache)
            for t in range(batch["tokens"].shape[1])
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-3, rtol=1e-3)


def test_the_divergence_is_that_of_normal_distributions() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    found = Posterior(mean, log_variance, torch.zeros(1, 5, dtype=torch.long), torch.ones(5, dtype=torch.bool))
    true = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(5, 3), torch.ones(5, 3)))
    torch.testing.assert_close(kl_of_dimensions(found), true)


def test_the_weight_of_the_divergence_grows_in_each_cycle(songs: Path) -> None:
    task = vae(music(songs).tokenizer, beta=0.8, cycles=2, ramp=0.5)
    assert task.kl_weight == 0.8  # outside of training
    task._trainer = type("Run", (), {"max_steps": 100})()
    found = []
    for step in (0, 10, 25, 49, 50, 75):
        task.steps_trained = step
        found.append(round(task.kl_weight, 3))
    assert found == [0.0, 0.32, 0.8, 0.8, 0.0, 0.8]


def test_what_is_learnt_lies_in_the_latents(trained: Vae) -> None:
    batch, model = batch_of(trained, song(5)), trained.model
    assert isinstance(model, TransformerVae)
    features = {name: batch[f"feature_{name}"] for name in trained.tokenizer.feature_sizes}
    with torch.inference_mode():
        found = trained.posterior(batch)
        codes = torch.cat([found.mean, trained.attributes(batch, found)], dim=1)
        mine, others = (
            torch.nn.functional.cross_entropy(
                model.decode(batch["tokens"], code, found.bar, documents_bt=batch["documents"], features=features)[0, :-1],
                batch["tokens"][0, 1:],
            )
            for code in (codes, codes.flip(0))
        )
        measured = trained.measure(batch)
    assert mine < others
    assert measured["active_units"].mean > 0.2
    assert measured["neg_elbo"].mean == pytest.approx(float(measured["nll"].mean + measured["kl"].mean))


def test_attributes_are_notes_and_pitch_of_bars_in_standard_deviations(trained: Vae) -> None:
    score = song(4, bars=3)
    codes = trained.encode_score(score)
    count, mean = trained.moments[0], trained.moments[1] / trained.moments[0]
    deviation = (trained.moments[2] / count - mean**2).sqrt()
    bars = [[note.pitch for track in score.tracks for note in track.notes if note.time // 1920 == bar] for bar in range(3)]
    notes = torch.tensor([float(len(pitches)) for pitches in bars]).log1p()
    pitch = torch.tensor([sum(pitches) / len(pitches) for pitches in bars])
    torch.testing.assert_close(codes[:, -2], (notes - mean[0]) / deviation[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(codes[:, -1], (pitch - mean[1]) / deviation[1], atol=1e-3, rtol=1e-3)


def test_between_two_points_lie_their_great_circle_and_their_lengths() -> None:
    first, last = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 8.0]])
    torch.testing.assert_close(between(first, last, 0.0), first, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(between(first, last, 1.0), last, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(between(first, last, 0.5), torch.tensor([[8**0.5, 8**0.5]]))
    torch.testing.assert_close(between(first, first, 0.3), first)


def test_pieces_between_two_scores_have_their_bars_and_metre(trained: Vae) -> None:
    pieces = trained.interpolate(song(1, bars=3), song(2, bars=4), steps=3, max_new_tokens=250)
    assert len(pieces) == 3
    for piece in pieces:
        assert bars_begun(piece) <= 3 and {(m.numerator, m.denominator) for m in piece.time_signatures} == {(4, 4)}
        assert {track.program for track in piece.tracks} <= {52}
    waltz = song(2)
    waltz.time_signatures = [TimeSignature(0, 3, 4)]
    with pytest.raises(ValueError, match=r"other metres \(4/4 and 3/4\)"):
        trained.interpolate(song(1), waltz, steps=3)
    with pytest.raises(ValueError, match="steps is 1, must be at least 2"):
        trained.interpolate(song(1), song(2), steps=1)


def test_slides_and_samples_come_from_latents(trained: Vae) -> None:
    more, same_again = (trained.slide(song(1, bars=2), {"density": 2.0}, max_new_tokens=150) for _ in range(2))
    assert more[0].dumps_midi() == same_again[0].dumps_midi()
    with pytest.raises(ValueError, match="slide has 'swing'; give some of density, pitch"):
        trained.slide(song(1), {"swing": 1.0})
    first, other = (trained.sample(num_bars=2, max_new_tokens=100, seed=seed)[0].dumps_midi() for seed in (1, 2))
    assert first != other
    (longer,) = trained.sample(prompt=song(1, bars=2), num_bars=3, max_new_tokens=200)
    assert bars_begun(longer) <= 3


def test_each_of_several_prompts_goes_on_from_its_own_latents(trained: Vae) -> None:
    prompts, options = [song(0), song(3)], {"num_samples": 1, "max_new_tokens": 60, "seed": 4}
    together = trained.sample(prompt=prompts, **options)
    alone = [sample for prompt in prompts for sample in trained.sample(prompt=prompt, **options)]
    assert [score.dumps_midi() for score in together] == [score.dumps_midi() for score in alone]


def test_killed_and_resumed_equals_uninterrupted(songs: Path, tmp_path: Path) -> None:
    def run(name: str, *others: Any, resume: Path | None = None) -> Vae:
        data = music(songs)
        task, last = vae(data.tokenizer), LastCheckpoint(path=tmp_path / name / "last.ckpt", every_n_steps=1000)
        fit = trainer(tmp_path / name, max_steps=8, callbacks=[*others, last], val_check_interval=4)
        fit.fit(task, data, ckpt_path=resume, weights_only=True)
        return task

    whole = run("whole")
    run("half", Stop(3))
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(weights(whole), weights(rest))
    assert torch.equal(whole.moments, rest.moments) and float(whole.moments.sum()) > 0


def test_other_networks_and_tokens_are_refused(songs: Path) -> None:
    tokenizer = MidiTokTokenizer(genres=[])
    with pytest.raises(ValueError, match="task=vae trains model=transformer_vae, not Transformer"):
        Vae(model=partial(Transformer, dim=16, num_layers=1, num_heads=2), tokenizer=tokenizer, optimizer=torch.optim.AdamW)
    with pytest.raises(ValueError, match="set tokenizer=remi"):
        Vae(model=SMALL, tokenizer=SatbGrid(), optimizer=torch.optim.AdamW)
    with pytest.raises(ValueError, match=r"task\.ramp=0"):
        Vae(model=SMALL, tokenizer=tokenizer, ramp=0, optimizer=torch.optim.AdamW)
    with pytest.raises(ValueError, match="use it with task=vae"):
        vae(tokenizer).model.new_cache(1)  # type: ignore[operator]
