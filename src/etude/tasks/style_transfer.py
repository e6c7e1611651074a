"""Style transfer of audio, as mel spectrograms, learned by GANs from unpaired recordings of each style.

Shapes: s styles, b pieces of each, n rows (s * b), m mel bands, f frames, e style dimensions.

Generators and discriminators work on standardised mels: each band has mean 0 and deviation 1 over the training audio of its
style. So a generator that changes nothing gives the per-band affine map between the two styles.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from etude.audio.chroma import mel_chroma_filterbank
from etude.audio.mel import MelContract
from etude.audio.transposition import band_centres, transpose_bands
from etude.core.batch import Batch
from etude.core.task import OptimizerFactory, SchedulerFactory, frozen
from etude.losses.adversarial import Kind, discriminator_loss, generator_loss, r1_penalty
from etude.losses.cycle import cycle_loss, identity_loss
from etude.losses.feature_matching import feature_matching
from etude.losses.harmony import chroma_loss
from etude.losses.patch_nce import layers_nce
from etude.losses.rhythm import onset_loss
from etude.losses.style_terms import D, G, check_options, full_weights
from etude.models.mel.generator import StyleEncoder
from etude.models.mel.image_pool import ImagePool
from etude.models.mel.style_bands import FADE_FRAMES, BandStatistics, repeat_style
from etude.tasks.style_measures import StyleTask, rows_of_styles

HEADROOM = 2.0  # nats by which a generated mel may exceed the contract's ceiling; full-scale audio hardly reaches the ceiling
NUM_POSITIONS = 64  # frames of a piece that patch_nce compares


class StyleTransfer(StyleTask):
    """Learns to translate between all pairs of styles; the loss weights make it a CycleGAN, a StarGAN, a CUT and others.

    The loss terms, each averaged over source styles. x is a standardised mel of style s, y(x) the generator's output for another
    style t, e noise of deviation `input_noise`. A term of weight 0 is not computed.

    - generator/adversarial, discriminator/game: the adversarial losses. discriminator/r1: gradient penalty |dD/dx|^2 at real x,
      divided by the number of frames, every `r1_every` batches.
    - generator/cycle: cycle consistency |back(y(x + e) + e) - x| in nats (Zhu et al. 2017). The share `cycle_gradient` of its
      gradient reaches the generator of y. 1 is CycleGAN; 0 is back-translation (Lample et al. 2018): each generator learns to
      reconstruct x, but not to keep what that needs in its own outputs. The noise keeps it from hiding there in small details.
      With `cycle_transposed`, half of the rows are |back(T(y(x))) - T(x)|, T a transposition: an exchange of harmonies that is
      not the same in every key can't be undone then. feature_matching compares the same mels.
    - generator/identity: |generator(x of t, to t) - x| in nats, every `identity_every` batches until `identity_until`.
    - generator/patch_nce: contrastive loss between frames of x and y(x) in the generator's hidden layers (CUT, Park et al. 2020).
    - generator/feature_matching: distance of the discriminator's features of the reconstruction and of x.
    - generator/rhythm, generator/harmony: distance of the onsets and of the pitch classes of y(x) and x.

    Args:
        model: builds a generator from n_mels and style_dim. discriminator: builds the discriminator from the number of styles and
            n_mels; it returns logits and features.
        contract: the mel settings. styles: names of the styles. statistics: of bands in nats, see `BandStatistics`.
        optimizer, scheduler, loss_weights, player_lr, seed: see `Task`.
        shared: whether one generator, conditioned on style vectors, serves all directions; else each ordered pair of styles has
            its own. A batch uses all of them with two or three styles, but not with more.
        style_dim: size e of the style vectors. reference_share: how often, in [0, 1], the target's comes from a clip, not a name.
        adversarial: lsgan, hinge or non_saturating. input_noise: standard deviation of e, relative to that of a band.
        cycle_transposed: greatest interval in semitones of a transposition within the cycle; None for none.
        cycle_gradient: share of the cycle loss's gradient that reaches the first generator, in [0, 1].
        huber: Huber threshold of the cycle and identity losses in nats; 0 for the absolute difference.
        r1_every, identity_every: batches between two computations. identity_until: batch after which the identity loss ends.
        pool_size: past outputs that the discriminator also gets (Shrivastava et al. 2017); 0 for none.

    Raises:
        ValueError: loss_weights names an unknown term, or an option is out of its range.
    """

    takes_visible = True
    optional_terms: ClassVar[frozenset[str]] = frozenset({D + "r1", G + "identity"})
    example_axis: ClassVar[int | None] = 1
    min_styles: ClassVar[int | None] = 2  # a batch of some styles trains the directions between these

    def __init__(
        self,
        *,
        model: Callable[..., nn.Module],
        discriminator: Callable[..., nn.Module],
        contract: MelContract,
        styles: Sequence[str],
        statistics: Tensor,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss_weights: Mapping[str, float] | None = None,
        player_lr: Mapping[str, float] | None = None,
        shared: bool = False,
        style_dim: int = 32,
        reference_share: float = 0.5,
        adversarial: Kind = "lsgan",
        cycle_gradient: float = 0.3,
        input_noise: float = 0.3,
        cycle_transposed: float | None = None,
        huber: float = 0.0,
        r1_every: int = 8,
        identity_every: int = 4,
        identity_until: int | None = None,
        pool_size: int = 0,
        seed: int = 0,
    ) -> None:
        shares = {"reference_share": reference_share, "cycle_gradient": cycle_gradient}
        sizes = {"input_noise": input_noise, "huber": huber, "pool_size": pool_size, "cycle_transposed": cycle_transposed or 0.0}
        check_options(sizes=sizes, shares=shares, counts=(r1_every, identity_every, style_dim), styles=styles, kind=adversarial)
        weights = full_weights(loss_weights or {})
        super().__init__(
            optimizer=optimizer,
            scheduler=scheduler,
            loss_weights={name: w for name, w in weights.items() if w},
            player_lr=player_lr,
            seed=seed,
        )
        self.contract, self.styles, self.shared = contract, tuple(styles), shared
        self.adversarial, self.input_noise, self.reference_share = adversarial, input_noise, reference_share
        self.cycle_gradient, self.huber, self.networks_per_style = cycle_gradient, huber, not shared
        self.r1_every, self.identity_every, self.identity_until = r1_every, identity_every, identity_until
        count = len(self.styles)
        self.pairs = [(s, t) for s in range(count) for t in range(count) if s != t]
        build = partial(model, n_mels=contract.n_mels, style_dim=2 * style_dim if shared else 0)
        self.generators = nn.ModuleList(build() for _ in range(1 if shared else len(self.pairs)))
        self.sources = nn.Embedding(count, style_dim) if shared else None
        self.targets = nn.Embedding(count, style_dim) if shared else None
        self.encoder = StyleEncoder(contract.n_mels, style_dim) if shared and reference_share else None
        self.judge = discriminator(count, n_mels=contract.n_mels)  # the discriminator; checkpoints know it by this name
        width = getattr(self.generators[0], "outlet").in_features if weights[G + "patch_nce"] else 0  # noqa: B009
        self.heads = nn.ModuleList(nn.Linear(width, 64) for _ in range(3 if width else 0))
        self.pool, self.cycle_transposed = ImagePool(pool_size), cycle_transposed
        self.bands = BandStatistics(statistics)
        self.register_buffer("centres", band_centres(contract).clone(), persistent=False)
        self.register_buffer("chroma_bands", mel_chroma_filterbank(contract).clone(), persistent=False)

    @property
    def players(self) -> dict[str, Sequence[nn.Module]]:
        extra = [part for part in (self.sources, self.targets, self.encoder) if part is not None]
        return {"generator": [self.generators, self.heads, *extra], "discriminator": [self.judge]}

    def configure_model(self) -> None:
        """Raises a ValueError under trainer=fsdp, which this task does not support yet."""
        if self.device_mesh is not None:
            raise ValueError(
                "task=style_transfer does not run under trainer=fsdp; its networks are small: trainer=ddp, technique=[]"
            )

    # --- generators ---

    def _style_vectors(self, source_n: Tensor, target_n: Tensor, reference_nmf: Tensor | None = None) -> Tensor | None:
        if self.sources is None or self.targets is None:
            return None
        target_ne = self.targets(target_n)
        if reference_nmf is not None and self.encoder is not None:
            by_clip_n1 = torch.rand(len(target_n), 1, device=self.device) < self.reference_share
            target_ne = torch.where(by_clip_n1, self.encoder(reference_nmf).to(target_ne), target_ne)
        return torch.cat([self.sources(source_n), target_ne], dim=-1)

    def _directions(self, source_n: Tensor, target_n: Tensor) -> Iterator[tuple[nn.Module, slice]]:
        """Yields each generator with the consecutive rows that it translates."""
        if self.shared:
            yield self.generators[0], slice(None)
            return
        directions = list(zip(source_n.tolist(), target_n.tolist(), strict=True))
        start = 0
        for direction, rows in groupby(directions):
            stop = start + len(list(rows))
            yield self.generators[self.pairs.index(direction)], slice(start, stop)
            start = stop

    def _generate(
        self, x_nmf: Tensor, source_n: Tensor, target_n: Tensor, vectors: Tensor | None, visible: Tensor | None = None
    ) -> Tensor:
        """Returns mels standardised in the target style, of mels standardised in the source style."""
        out = [
            generator(x_nmf[rows], None if vectors is None else vectors[rows], None if visible is None else visible[rows])
            for generator, rows in self._directions(source_n, target_n)
        ]
        return torch.cat(out)

    def _add_noise(self, x_nmf: Tensor) -> Tensor:
        return x_nmf + self.input_noise * torch.randn_like(x_nmf) if self.input_noise else x_nmf

    # --- training ---

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        mel_sbmf = batch["mel"]
        styles, pieces = mel_sbmf.shape[:2]
        on = {name for name, weight in self.loss_weights.items() if weight}
        source_n = batch.get("style", torch.arange(styles, device=self.device)[:, None].expand(-1, pieces)).flatten()
        shift = int(torch.randint(1, styles, ())) if styles > 2 else 1  # each style is translated to a different one
        target_n = source_n.roll(-shift * pieces)
        log_nmf = self.contract.denormalise(mel_sbmf.flatten(0, 1))
        x_nmf = self.bands.standardise(log_nmf, source_n)
        # real mels of the target style of each row
        of_target_nmf = torch.unflatten(x_nmf, 0, (styles, pieces)).roll(-shift, 0).flatten(0, 1)
        visible = batch["visible"].flatten(0, 1) if "visible" in batch else None
        vectors = self._style_vectors(source_n, target_n, of_target_nmf)
        input_nmf = self._add_noise(x_nmf)
        fake_nmf = self._generate(input_nmf, source_n, target_n, vectors, visible)
        self.trace = {"generator/input": input_nmf, "generator/output": fake_nmf, "source": source_n, "target": target_n}
        if visible is not None:
            self.trace["generator/visible"] = visible
        terms: dict[str, Tensor] = {}
        if G + "adversarial" in on:
            with frozen(self.judge):
                logits, _ = self.judge(fake_nmf, target_n)
            terms[G + "adversarial"] = generator_loss(logits, self.adversarial)
        terms |= self._cycle(on, x_nmf, fake_nmf, source_n, target_n)
        terms |= self._preservation(on, log_nmf, x_nmf, fake_nmf, source_n, target_n, vectors)
        until = float("inf") if self.identity_until is None else self.identity_until
        if G + "identity" in on and self.batches_trained % self.identity_every == 0 and self.batches_trained < until:
            identity_nmf = self._generate(of_target_nmf, source_n, target_n, self._style_vectors(target_n, target_n))
            scale_nm1 = self.bands.deviation(target_n)
            terms[G + "identity"] = identity_loss(identity_nmf, of_target_nmf, scale_nm1=scale_nm1, huber=self.huber)
        return terms | self._discriminator(on, x_nmf, source_n, *self.pool.swap(fake_nmf.detach(), target_n))

    def _cycle(self, on: set[str], x_nmf: Tensor, fake_nmf: Tensor, source_n: Tensor, target_n: Tensor) -> dict[str, Tensor]:
        if not on & {G + "cycle", G + "feature_matching"}:
            return {}
        terms: dict[str, Tensor] = {}
        detached_nmf = fake_nmf.detach()
        if self.cycle_gradient:
            detached_nmf = torch.lerp(detached_nmf, fake_nmf, self.cycle_gradient)  # equal values, a share of the gradient
        if self.cycle_transposed:
            draws_2n = torch.rand(2, len(x_nmf), device=self.device)
            semitones_n = self.cycle_transposed * (2 * draws_2n[0] - 1) * (draws_2n[1] < 0.5)
            detached_nmf = self._transposed(detached_nmf, semitones_n, target_n)
            x_nmf = self._transposed(x_nmf, semitones_n, source_n)
        rebuilt_nmf = self._generate(self._add_noise(detached_nmf), target_n, source_n, self._style_vectors(target_n, source_n))
        if G + "cycle" in on:
            terms[G + "cycle"] = cycle_loss(rebuilt_nmf, x_nmf, scale_nm1=self.bands.deviation(source_n), huber=self.huber)
        if G + "feature_matching" in on:
            with frozen(self.judge):
                rebuilt, real = self.judge(rebuilt_nmf, source_n)[1], self.judge(x_nmf, source_n)[1]
                terms[G + "feature_matching"] = feature_matching(rebuilt, real)
        return terms

    def _transposed(self, x_nmf: Tensor, semitones_n: Tensor, style_n: Tensor) -> Tensor:
        log_nmf = transpose_bands(self.bands.destandardise(x_nmf, style_n), semitones_n, centres_m=cast(Tensor, self.centres))
        return self.bands.standardise(log_nmf, style_n)

    def _preservation(
        self, on: set[str], log_nmf: Tensor, x_nmf: Tensor, fake_nmf: Tensor, source_n: Tensor, target_n: Tensor,
        vectors: Tensor | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Returns the terms that keep properties of the source: rhythm, harmony and the content of each frame."""
        terms: dict[str, Tensor] = {}
        if on & {G + "rhythm", G + "harmony"}:
            fake_log_nmf = self.bands.destandardise(fake_nmf.float(), target_n)
            if G + "rhythm" in on:
                terms[G + "rhythm"] = onset_loss(self.contract.normalise(fake_log_nmf), self.contract.normalise(log_nmf))
            if G + "harmony" in on:
                terms[G + "harmony"] = chroma_loss(fake_log_nmf, log_nmf, filterbank_12m=cast(Tensor, self.chroma_bands))
        if G + "patch_nce" in on:
            queries = self._hidden_layers(fake_nmf, source_n, target_n, vectors)
            with torch.no_grad():
                keys = self._hidden_layers(x_nmf, source_n, target_n, vectors)
            places = torch.randperm(x_nmf.shape[-1], device=self.device)[:NUM_POSITIONS]
            terms[G + "patch_nce"] = layers_nce(queries, keys, heads=self.heads, positions_p=places)
        return terms

    def _hidden_layers(self, mel_nmf: Tensor, source_n: Tensor, target_n: Tensor, vectors: Tensor | None) -> list[Tensor]:
        """Returns the first, middle and last hidden layer of the generator of each row."""
        found = [
            cast(Any, generator).features(mel_nmf[rows], None if vectors is None else vectors[rows])
            for generator, rows in self._directions(source_n, target_n)
        ]
        layers = [torch.cat(layer) for layer in zip(*found, strict=True)]
        return [layers[0], layers[len(layers) // 2], layers[-1]]

    def _discriminator(
        self, on: set[str], x_nmf: Tensor, source_n: Tensor, fake_nmf: Tensor, style_n: Tensor
    ) -> dict[str, Tensor]:
        if D + "game" not in on:
            return {}
        penalised = D + "r1" in on and self.batches_trained % self.r1_every == 0
        real_nmf = x_nmf.detach().requires_grad_(penalised)
        real_logits, _ = self.judge(real_nmf, source_n)
        fake_logits, _ = self.judge(fake_nmf, style_n)
        terms = {D + "game": discriminator_loss(real_logits, fake_logits, self.adversarial)}
        if penalised:
            terms[D + "r1"] = r1_penalty(real_logits, real_nmf) / x_nmf.shape[-1]
        return terms

    # --- for techniques ---

    @property
    def residual_blocks(self) -> Sequence[nn.Module]:
        return tuple(block for generator in self.generators for block in cast(Any, generator).blocks)

    def recompute_trace(self, batch: Batch, trace: Mapping[str, Tensor]) -> dict[str, Tensor]:
        source_n, target_n = trace["source"], trace["target"]
        vectors = self._style_vectors(source_n, target_n)
        seen, visible = trace["generator/input"], trace.get("generator/visible")
        return {"generator/output": self._generate(seen, source_n, target_n, vectors, visible)}

    def discriminator_features(self, output_nmf: Tensor, trace: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """Returns the discriminator's hidden layers of each scale, for an output that belongs to the inputs in `trace`."""
        return cast(list[list[Tensor]], self.judge(output_nmf, trace["target"])[1])

    # --- use ---

    @property
    def context_frames(self) -> int:
        """Frames on each side that an output frame depends on (half of the receptive field)."""
        return max(FADE_FRAMES, *(int(cast(Any, generator).context_frames) for generator in self.generators))

    @property
    def stride(self) -> int:
        """The start of an excerpt must be a multiple of this many frames."""
        return int(cast(Any, self.generators[0]).stride)

    @torch.inference_mode()
    def translate(self, log_mel_bmf: Tensor, *, source: str, target: str, reference: Tensor | None = None) -> Tensor:
        """Translates natural-log mels [b, m, f], f at least 1, from one style to another.

        Args:
            source, target: names of styles; if they are equal, the input is returned.
            reference: natural-log mels [m, f] of a clip that stands for the target style; only for shared generators.

        Raises:
            ValueError: a style is unknown, or a reference is given and the model takes none.
        """
        s, t = self._index(source), self._index(target)
        if reference is not None and self.encoder is None:
            raise ValueError("reference: this model knows styles only by name; train with task.shared=true to use a clip")
        if s == t and reference is None:
            return log_mel_bmf.clone()
        source_b, target_b = (repeat_style(i, len(log_mel_bmf), self.device) for i in (s, t))
        vectors = self._style_vectors(source_b, target_b)
        if reference is not None and self.encoder is not None and vectors is not None:
            clip_1mf = self.bands.standardise(reference.to(self.device)[None], target_b[:1])
            named = vectors[:, : vectors.shape[1] // 2]
            vectors = torch.cat([named, self.encoder(clip_1mf).expand(len(target_b), -1)], dim=-1)
        # a band that was almost constant in training can get impossible values from a brighter recording
        fake_bmf = self._translated(log_mel_bmf.to(self.device), source_b, target_b, vectors)
        return fake_bmf.clamp(max=self.contract.ceiling + HEADROOM).to(log_mel_bmf)

    def _translated(self, log_mel_bmf: Tensor, source_b: Tensor, target_b: Tensor, vectors: Tensor | None) -> Tensor:
        fake_bmf = self._generate(self.bands.standardise(log_mel_bmf, source_b), source_b, target_b, vectors)
        fake_bmf = self.bands.destandardise(fake_bmf.float(), target_b)
        return self.bands.limit(fake_bmf, log_mel_bmf, target_b, lowest=math.log(self.contract.floor))

    def affine(self, log_mel_bmf: Tensor, *, source: str, target: str) -> Tensor:
        """Returns the affine baseline [b, m, f]: each band is mapped to the mean and deviation of the target style."""
        source_b, target_b = (repeat_style(self._index(i), len(log_mel_bmf), self.device) for i in (source, target))
        return self.bands.destandardise(self.bands.standardise(log_mel_bmf.to(self.device), source_b), target_b).to(log_mel_bmf)

    def style_distances(self, log_mel_mf: Tensor) -> dict[str, float]:
        """Returns how far a clip's band statistics are from those of each style, in nats a band, loudness aside."""
        return dict(zip(self.styles, (self.bands.distances(log_mel_mf) / self.contract.n_mels).sqrt().tolist(), strict=True))

    # --- measuring ---

    def restyled(self, batch: Batch) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        mel_sbmf = self.contract.denormalise(batch["mel"])
        rows, found = rows_of_styles(batch, self.styles), {}
        for s, t in (pair for pair in self.pairs if rows.keys() >= set(pair)):
            source_b, target_b = (repeat_style(i, mel_sbmf.shape[1], self.device) for i in (s, t))
            vectors = self._style_vectors(source_b, target_b)
            found[s, t] = self._translated(mel_sbmf[rows[s]], source_b, target_b, vectors), mel_sbmf[rows[t]]
        return found

    def features(self, batch: Batch) -> Tensor:
        """Returns one row for each piece of each style, [s * b, d]: the discriminator's last hidden layer, a mean over frames."""
        style_n = torch.arange(len(self.styles), device=self.device).repeat_interleave(batch["mel"].shape[1])
        log_nmf = self.contract.denormalise(batch["mel"].flatten(0, 1))
        scales = self.judge(self.bands.standardise(log_nmf, style_n), style_n)[1]
        return torch.cat([layers[-1].flatten(2).mean(-1) for layers in scales], dim=-1)

    # --- checkpoints ---

    @classmethod
    def constructor_arguments_from(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor arguments that come from the data, read from a checkpoint."""
        return {
            "contract": MelContract(**saved["contract"]),
            "styles": tuple(saved["styles"]),
            "statistics": saved["statistics"],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        known = {"contract": self.contract.to_dict(), "styles": list(self.styles)}
        checkpoint["etude"] |= known | {"statistics": cast(Tensor, self.bands.statistics).cpu()}
        checkpoint["etude"]["pool"] = self.pool.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["etude"]
        if difference := MelContract(**saved["contract"]).difference(self.contract):
            raise ValueError(f"the checkpoint has another mel contract ({difference}); give the contract= options of its run")
        if tuple(saved["styles"]) != self.styles:
            raise ValueError(f"its styles are {saved['styles']}, here {list(self.styles)}; give the same, or weights=")
        self.bands.statistics = saved["statistics"].to(self.device)  # those of before the limits limit nothing, as then
        self.pool.restore(saved["pool"])
