"""The adversarial game on tokens: values by hand, whose parameters each term reaches, what the critic learns, and resuming."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data.scores.corpora import Folder
from etude.data.scores.module import MusicDataModule
from etude.models.symbolic.grid_transformer import GridTransformer
from etude.models.symbolic.transformer import Transformer
from etude.models.symbolic.transformer_vae import TransformerVae
from etude.tasks.language_model import LanguageModel
from etude.tasks.vae import Vae
from etude.techniques.loss.adversarial import Adversarial, TokenCritic, straight_through_sample
from etude.techniques.loss.balance import Balance
from etude.tokens.miditok import MidiTokTokenizer
from etude.tokens.satb import SatbGrid
from tests.songs import write_songs
from tests.test_composition import fit
from tests.toys import ToyGan, same, trainer

BY_HAND = (0.0, 0.5, 2.0)  # scores of the three tokens of `by_hand`


def by_hand(**options: Any) -> Adversarial:
    """A technique whose critic scores the tokens 0, 1 and 2 with `BY_HAND`, whatever comes before: D(e) = e."""
    technique = Adversarial(width=1, **options)
    technique.make_critic(3, torch.device("cpu"))
    critic = technique.critic
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
        critic.embedding.weight.copy_(torch.tensor(BY_HAND)[:, None])
        critic.hidden.weight.copy_(torch.tensor([[0.0, 1.0]]))
        critic.score.weight.fill_(1.0)
    return technique


def one_hot(tokens: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(tokens), 3).float()


def test_terms_are_the_hinge_game_and_r1_by_hand() -> None:
    drawn, real = one_hot([2, 1]), torch.tensor([1, 0])
    found = by_hand().terms(torch.zeros(1, 2, dtype=torch.long), torch.tensor([0, 1]), drawn, real)
    assert found["adversarial"].item() == pytest.approx(-(2.0 + 0.5) / 2)
    on_real, on_drawn = (0.5 + 1.0) / 2, (3.0 + 1.5) / 2  # max(0, 1 - D) of 0.5 and 0; max(0, 1 + D) of 2 and 0.5
    assert found["critic/game"].item() == pytest.approx(on_real + on_drawn)
    # the slope of D is 1 above 0; at the kink, token 0, PyTorch takes the leak, 0.2
    assert found["critic/r1"].item() == pytest.approx((1.0 + 0.04) / 2)


def test_each_term_reaches_its_own_player_alone() -> None:
    technique, tokens = Adversarial(width=4), torch.randint(0, 7, (2, 9))
    technique.make_critic(7, torch.device("cpu"))
    logits = torch.randn(6, 7, requires_grad=True)
    drawn = straight_through_sample(logits, temperature=1.0, generator=torch.Generator().manual_seed(0))
    found = technique.terms(tokens, torch.tensor([0, 3, 8, 9, 12, 17]), drawn, torch.randint(0, 7, (6,)))
    parameters = list(technique.critic.parameters())

    def slopes(name: str, inputs: list[Tensor]) -> list[Tensor | None]:
        if not found[name].requires_grad:
            return [None] * len(inputs)
        return list(torch.autograd.grad(found[name], inputs, retain_graph=True, allow_unused=True))

    (to_model,) = slopes("adversarial", [logits])
    assert to_model is not None and to_model.abs().sum() > 0
    assert slopes("adversarial", parameters) == [None] * len(parameters)
    for name in ("critic/game", "critic/r1"):
        assert slopes(name, [logits]) == [None]
        assert any(slope is not None and slope.abs().sum() > 0 for slope in slopes(name, parameters))


def test_samples_are_tokens_with_the_models_probabilities_and_the_gradient_of_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0]).expand(20_000, 3).clone().requires_grad_()
    drawn = straight_through_sample(logits, temperature=0.5, generator=torch.Generator().manual_seed(1))
    assert set(drawn.detach().unique().tolist()) == {0.0, 1.0} and (drawn.sum(-1) == 1).all()
    torch.testing.assert_close(drawn.detach().mean(0), logits[0].detach().softmax(-1), atol=0.015, rtol=0)
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
    soft = ((logits - (-noise.log()).log()) / 0.5).softmax(-1)
    way = torch.randn(3)
    straight, relaxed = (torch.autograd.grad((value * way).sum(), logits)[0] for value in (drawn, soft))
    torch.testing.assert_close(straight, relaxed)


def test_the_critic_sees_no_later_token() -> None:
    torch.manual_seed(0)
    critic, tokens = TokenCritic(9, 4), torch.randint(0, 9, (1, 40))
    later = tokens.clone()
    later[0, 25:] = (later[0, 25:] + 1) % 9
    before, after = critic.context(tokens), critic.context(later)
    torch.testing.assert_close(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25], after[:, 25])


# --- in training ---


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("adversarial") / "songs")


def music(songs: Path, tokenizer: Any, **options: Any) -> MusicDataModule:
    return MusicDataModule(
        corpus=Folder(str(songs)), tokenizer=tokenizer, cache_dir=str(songs.parent / "cache"), max_len=256, max_eval_len=256,
        batch_size=2, batches_per_epoch=5, prepare_workers=1, seed=1, infill=0.0, **options,
    )  # fmt: skip


def build(kind: str, songs: Path) -> tuple[Any, MusicDataModule]:
    torch.manual_seed(0)
    data = music(songs, SatbGrid if kind == "grid" else MidiTokTokenizer)
    options = {"tokenizer": data.tokenizer, "optimizer": partial(torch.optim.AdamW, lr=1e-2), "seed": 1}
    if kind == "vae":
        network = partial(TransformerVae, dim=16, num_layers=1, encoder_layers=1, num_heads=2, hidden_dim=16, latent_dim=4)
        return Vae(model=network, **options), data
    if kind == "grid":
        sizes = {"low": data.tokenizer.low, "high": data.tokenizer.high}
        grid = partial(GridTransformer, dim=32, num_layers=1, num_heads=2, decoder_dim=16, decoder_layers=1, **sizes)
        return LanguageModel(model=grid, **options), data
    return LanguageModel(model=partial(Transformer, dim=16, num_layers=1, num_heads=2), **options), data


def game(**options: Any) -> Adversarial:
    return Adversarial(**{"width": 8, "warmup": 4, "positions": 64, **options})


@pytest.mark.parametrize("kind", ["language_model", "vae", "grid"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, songs: Path, kind: str) -> None:
    def run(folder: str, **options: Any) -> dict[str, Any]:
        return fit(tmp_path / folder, lambda: build(kind, songs), [game()], **options)

    whole = run("whole")
    run("half", kill_at=3)
    rest = run("rest", resume=tmp_path / "half" / "last.ckpt")
    assert same(whole["trained"], rest["trained"])
    states = [found["callbacks"]["Adversarial"] for found in (whole, rest)]
    assert same(states[0]["critic"], states[1]["critic"]) and states[0]["batches"] == 8
    assert same(whole["trained"], fit(tmp_path / "off", lambda: build(kind, songs), [])["trained"]) is False


def test_the_critic_is_no_part_of_the_model_and_learns_to_tell_an_untrained_one(tmp_path: Path, songs: Path) -> None:
    technique = game(warmup=10_000, weight=1e-6, critic_lr=0.01)  # only the critic learns something that counts
    task, data = build("language_model", songs)
    task._optimizer = partial(torch.optim.SGD, lr=0.0)
    games: list[float] = []
    technique_terms = technique.terms

    def noting(*args: Any) -> dict[str, Tensor]:
        found = technique_terms(*args)
        games.append(found["critic/game"].item())
        return found

    technique.terms = noting  # type: ignore[method-assign]
    trainer(tmp_path, max_steps=40, callbacks=[technique], limit_val_batches=0).fit(task, data)
    assert games[0] == pytest.approx(2.0, abs=0.5)  # it knows nothing: a hinge of 1 on both sides
    assert sum(games[-5:]) / 5 < 1.3
    assert not any("critic" in name for name in task.state_dict())


def test_the_weight_rises_over_the_warmup() -> None:
    technique, term = Adversarial(weight=0.4, warmup=4, r1=3.0), {"adversarial": torch.zeros(()), "nll": torch.zeros(())}
    found = []
    for technique.batches in range(1, 7):  # counted when the terms are made
        found.append(technique.scale_losses(None, term)["adversarial"])  # type: ignore[arg-type]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert technique.scale_losses(None, {"critic/r1": torch.zeros(())}) == {"critic/r1": 1.5}  # type: ignore[arg-type]


def test_balance_weighs_the_terms_of_each_player_among_themselves(tmp_path: Path, songs: Path) -> None:
    balance = Balance()
    task, data = build("language_model", songs)
    trainer(tmp_path, max_steps=3, callbacks=[balance, game()], limit_val_batches=0).fit(task, data)
    assert balance._factors.keys() == {"nll", "adversarial", "critic/game", "critic/r1"}
    alone = Balance()
    task, data = build("language_model", songs)
    trainer(tmp_path, max_steps=3, callbacks=[alone, game(r1=0.0)], limit_val_batches=0).fit(task, data)
    assert alone._factors.keys() == {"nll", "adversarial"}  # the critic has one term only


def test_what_cannot_work_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^technique adversarial judges tokens, which ToyGan does not predict; remove it"):
        Adversarial().setup(None, ToyGan(), "fit")  # type: ignore[arg-type]
    for options, told in (
        ({"weight": 0}, r"adversarial\.weight is 0, must be above 0"),
        ({"warmup": -1}, r"adversarial\.warmup is -1, must be at least 0"),
        ({"r1": -1}, r"adversarial\.r1 is -1, must be at least 0"),
        ({"temperature": 0}, r"adversarial\.temperature is 0, must be above 0"),
        ({"positions": 0}, r"adversarial\.positions is 0, must be at least 1"),
        ({"width": 0}, r"adversarial\.width is 0, must be at least 1"),
        ({"critic_lr": 0}, r"adversarial\.critic_lr is 0, must be above 0"),
    ):
        with pytest.raises(ValueError, match=told):
            Adversarial(**options)
