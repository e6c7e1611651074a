"""A Transformer over the frames of a four-voice grid, with a small network over the voices of a frame.

The trunk has one position per frame, a quarter of the tokens; the decoder adds the voices of the frame that are known already.
Inputs are relative to the voice that is predicted next (`grid_context`), outputs are relative to the last pitch of each voice,
and some of the rotary angles depend on pitch. So what is learned in one key applies to all twelve.

Shapes: b rows, t tokens, n = b * t, m frames of all pieces, d trunk width, e decoder width, c context columns,
v vocabulary, p pitches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.models.symbolic import kernels
from etude.models.symbolic.attention import Attention, Packing
from etude.models.symbolic.blocks import Block, FeedForward
from etude.models.symbolic.grid_cache import GridCache
from etude.models.symbolic.grid_context import CHROMA, OWN, REST, SIZES, compute_context
from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.passage_memory import PassageSearch
from etude.models.symbolic.passage_reader import PassageReader

INIT_STD = 0.02
IMPOSSIBLE = -1e4  # logit of a token that is impossible at a position in a frame
NUM_REFERENCES = 5  # last pitch of each voice, and the soprano's pitch before the frame
EOS = 2
PITCH_TURNS = (1 / 12, 5 / 12, 3 / 12, 4 / 12, 1 / 30, 1 / 90)  # turns per semitone: octave, fifths, thirds, register


class ContextEmbedding(nn.Module):
    """Embeds a `Context`: the sum of an embedding of each categorical feature, with one table per voice, and of the chroma.

    Args:
        dim: width of the result.
        dropout: probability of dropping a feature of a token; with half of it, all features of a token are dropped.
        fused: sum in one kernel, which has no second derivative.
    """

    starts: Tensor
    sizes: Tensor

    def __init__(self, *, dim: int, dropout: float, fused: bool = True) -> None:
        super().__init__()
        self.dropout, self.fused = dropout, fused
        self.table = nn.EmbeddingBag(4 * sum(SIZES), dim, mode="sum")
        self.voice = nn.Embedding(4, dim)
        self.chroma = nn.Linear(CHROMA, dim)
        starts = torch.tensor([0, *SIZES]).cumsum(0)[:-1] * 4
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("sizes", torch.tensor(SIZES), persistent=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.3 / math.sqrt(len(SIZES)))
        nn.init.normal_(self.voice.weight, std=0.1)

    def forward(self, ids: Tensor, chroma: Tensor, voices: Tensor) -> Tensor:
        """Returns embeddings [..., dim] of ids [..., c], chroma [..., 24] and voices [...]."""
        flat = (ids + self.starts + voices[..., None] * self.sizes).flatten(0, -2)
        weights = None
        if self.training and self.dropout:
            keep = torch.rand(flat.shape, device=flat.device) >= self.dropout
            keep &= torch.rand(len(flat), 1, device=flat.device) >= self.dropout / 2
            weights = keep.float()
        if self.fused:
            summed = self.table(flat, per_sample_weights=weights)
        else:
            columns = F.embedding(flat, self.table.weight)
            summed = (columns if weights is None else columns * weights[..., None]).sum(-2)
        summed = summed.view(*voices.shape, -1)
        embedded: Tensor = summed + self.voice(voices) + self.chroma(chroma)
        return embedded


@dataclass
class Frames:
    """Positions and pitches of the frames of a batch.

    start: [m], flat index of the token after which the soprano of the frame is predicted.
    piece: [m], index of the frame's piece among all pieces of the batch; frames of a piece are contiguous.
    number: [m], index of the frame in its piece.
    places: [m, 4], whether the token at start + voice exists in the piece.
    pitches: [pieces, frames, 4]; lengths: frames of each piece, the last of which may be unknown.
    controls: [n], True for tokens before the first frame. owner: [n], piece of each token.
    """

    start: Tensor
    piece: Tensor
    number: Tensor
    places: Tensor
    pitches: Tensor
    lengths: list[int]
    controls: Tensor
    owner: Tensor


class GridTransformer(nn.Module):
    """Predicts the next token of a `SatbGrid` without bar tokens.

    The control tokens of a piece are summed to one vector, which is added to every frame.

    Args:
        vocab_size: number of tokens v; the last ones are Rest and the pitches low to high.
        low, high: the tokenizer's pitch range.
        dim, num_layers, num_heads, hidden_dim: sizes of the trunk.
        decoder_dim, decoder_layers: width e and number of residual layers of the decoder.
        max_len: default capacity of `new_cache`, in tokens.
        dropout: dropout of embeddings and residual branches.
        context_dropout: dropout of each feature of the context.
        memory: look up what followed in similar passages of the training pieces, which the model then holds; see `PassageReader`.
        feature_sizes: feature sizes of the tokenizer; must contain `voice`.
        fused: see `etude.models.symbolic.transformer.Transformer`.

    Raises:
        ValueError: the tokenizer is no four-voice grid without bar tokens, or dim does not fit.

    Source: relative inputs and outputs after Huang et al. 2019 (Music Transformer) and Guo et al. 2023 (RIPO attention);
    rotated values after Miyato et al. 2024 (GTA); frames then voices after Hadjeres et al. 2017 (DeepBach), causally.
    """

    time_rate: Tensor
    pitch_rate: Tensor

    def __init__(
        self, *, vocab_size: int, low: int = 31, high: int = 88, dim: int = 192, num_layers: int = 4, num_heads: int = 4,
        hidden_dim: int | None = None, decoder_dim: int = 160, decoder_layers: int = 2, max_len: int = 4096,
        dropout: float = 0.25, context_dropout: float = 0.25, memory: bool = False,
        feature_sizes: Mapping[str, int] | None = None, fused: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        first_body = vocab_size - (high - low + 2)
        if "voice" not in (feature_sizes or {}) or first_body <= EOS:
            raise ValueError("model=grid needs the four-voice grid without bar tokens; give tokenizer=satb or model=tiny")
        if dim % (2 * num_heads) or dim // num_heads // 2 <= len(PITCH_TURNS):
            raise ValueError(
                f"dim={dim} must be a multiple of 2 * num_heads = {2 * num_heads} and at least "
                f"{2 * (len(PITCH_TURNS) + 1)} a head; give model.dim={2 * (len(PITCH_TURNS) + 2) * num_heads} or more"
            )
        self.low, self.high, self.rest_id, self.vocab_size = low, high, first_body, vocab_size
        self.dim, self.decoder_dim, self.max_len, self.dropout, self.fused = dim, decoder_dim, max_len, dropout, fused
        hidden_dim = hidden_dim or -(-8 * dim // (3 * 64)) * 64
        self.frame_context = ContextEmbedding(dim=dim, dropout=context_dropout, fused=fused)
        self.token_context = ContextEmbedding(dim=decoder_dim, dropout=context_dropout, fused=fused)
        self.controls = nn.Embedding(vocab_size, dim)
        blocks = [
            Block(
                attention=Attention(
                    dim=dim, num_heads=num_heads, num_kv_heads=num_heads, qk_norm=True, fused=fused, rotate_values=True
                ),
                feed_forward=FeedForward(dim=dim, hidden_dim=hidden_dim),
                dropout=dropout,
                fused=fused,
            )
            for _ in range(num_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self._heads = num_heads, dim // num_heads
        self.to_decoder = nn.Linear(dim, 4 * decoder_dim)
        decoder_hidden = -(-8 * decoder_dim // (3 * 64)) * 64
        self.decoder = nn.ModuleList(FeedForward(dim=decoder_dim, hidden_dim=decoder_hidden) for _ in range(decoder_layers))
        self.span = high - low
        self.passages = PassageReader(dim=decoder_dim, dropout=0.6 * context_dropout) if memory else None
        self.relative = nn.Linear(decoder_dim, NUM_REFERENCES * (2 * self.span + 1))
        self.absolute = nn.Linear(decoder_dim, self.span + 3)  # Rest, the pitches, EOS
        half = dim // num_heads // 2
        periods = 2 * 2.0 ** torch.linspace(0, 10, half - len(PITCH_TURNS))
        self.register_buffer("time_rate", F.pad(2 * math.pi / periods, (0, len(PITCH_TURNS))), persistent=False)
        turns = 2 * math.pi * torch.tensor(PITCH_TURNS)
        self.register_buffer("pitch_rate", F.pad(turns, (half - len(PITCH_TURNS), 0)), persistent=False)
        self.reset_parameters()

    def check_vocabulary(self, vocab: Sequence[str]) -> None:
        """Raises a ValueError unless the vocabulary ends with Rest and the pitches low to high."""
        if [vocab[self.rest_id], vocab[self.rest_id + 1], vocab[-1]] != ["Rest", f"Pitch_{self.low}", f"Pitch_{self.high}"]:
            raise ValueError(
                f"model=grid with low={self.low}, high={self.high} needs tokenizer=satb with the same range and "
                "bar_tokens=false; give those, or model=tiny"
            )

    def reset_parameters(self) -> None:
        """Initialises all weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for stack in (self.blocks, self.decoder):
            for name, parameter in stack.named_parameters():
                if name.endswith("output.weight"):  # layers that add to the residual stream
                    nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * len(stack)))
        for head in (self.relative, self.absolute):
            nn.init.normal_(head.weight, std=INIT_STD / 2)
        nn.init.normal_(self.controls.weight, std=INIT_STD)
        self.frame_context.reset_parameters()
        self.token_context.reset_parameters()

    def forward(
        self, tokens_bt: Tensor, *, documents_bt: Tensor | None = None, positions_bt: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None, cache: GridCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns logits [b, t, v] of the next token; arguments as of `Transformer.forward`, but `positions_bt` is ignored.

        Where the next token belongs to no frame (among the control tokens, in padding) the logits are constant.
        """
        if features is None or "voice" not in features:
            raise ValueError("features must hold 'voice', as SatbGrid.features gives it")
        if cache is not None:
            return self._extend(tokens_bt, features["voice"], cache)
        frames, trunk_m4e, ids, chroma, references = self._read(tokens_bt, documents_bt, features["voice"])
        voices = torch.arange(4, device=tokens_bt.device).expand(len(trunk_m4e), 4)
        found = None
        if self.passages is not None:
            found = self.passages.look_up(frames.pitches, frames.lengths)[frames.piece, frames.number]
        logits_m4v = self._decode(trunk_m4e, ids, chroma, references, voices, found)
        return self._at_tokens(logits_m4v, frames, tokens_bt, empty=IMPOSSIBLE)

    def hidden(
        self, tokens_bt: Tensor, *, documents_bt: Tensor | None = None, positions_bt: Tensor | None = None,
        features: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        """Returns the trunk's output at every token that predicts a voice, [b, t, e]; 0 at all other tokens."""
        frames, trunk_m4e, *_ = self._read(tokens_bt, documents_bt, features["voice"])
        return self._at_tokens(trunk_m4e, frames, tokens_bt, empty=0.0)

    def _read(
        self, tokens_bt: Tensor, documents_bt: Tensor | None, voice_bt: Tensor
    ) -> tuple[Frames, Tensor, Tensor, Tensor, Tensor]:
        """Returns the frames, the trunk's output for each [m, 4, e], and the decoder's ids, chroma and references [m, 4, ...]."""
        frames = self._frames(tokens_bt, documents_bt, voice_bt)
        context = compute_context(frames.pitches, frames.lengths)
        at = frames.piece, frames.number
        ids, chroma, references = context.ids[at], context.chroma[at], context.references[at]
        condition = torch.zeros(len(frames.lengths), self.dim, device=tokens_bt.device)
        chosen = frames.controls
        condition = condition.index_add(0, frames.owner[chosen], self.controls(tokens_bt.flatten()[chosen]).float())
        trunk = self._trunk(
            ids[:, 0][None], chroma[:, 0][None], condition[frames.piece][None],
            self._angles(frames.number, references[:, 0, 0]), packing=Packing.split(frames.piece[None]),
        )  # fmt: skip
        soprano = references[:, :1, :1].expand(-1, 4, 1)
        return frames, trunk[0], ids, chroma, torch.cat([references, soprano], dim=-1)

    @staticmethod
    def _at_tokens(values_m4: Tensor, frames: Frames, tokens_bt: Tensor, *, empty: float) -> Tensor:
        """Returns values [m, 4, ...] of frames as values [b, t, ...] of tokens; `empty` at tokens that predict no voice."""
        flat = values_m4.new_full((tokens_bt.numel(), values_m4.shape[-1]), empty)
        target = (frames.start[:, None] + torch.arange(4, device=tokens_bt.device))[frames.places]
        return flat.index_copy(0, target, values_m4[frames.places]).view(*tokens_bt.shape, -1)

    def _frames(self, tokens_bt: Tensor, documents_bt: Tensor | None, voice_bt: Tensor) -> Frames:
        device, size = tokens_bt.device, tokens_bt.numel()
        if documents_bt is None:
            documents_bt = torch.zeros_like(tokens_bt)
        fresh = torch.ones_like(documents_bt, dtype=torch.bool)
        fresh[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
        owner = fresh.flatten().cumsum(0) - 1
        voice, real = voice_bt.flatten(), documents_bt.flatten() >= 0
        next_owner = torch.cat([owner[1:], owner.new_full((1,), -1)])
        next_voice = torch.cat([voice[1:], voice.new_zeros(1)])
        opens = (voice == 0) & ((next_voice == 1) | (next_owner != owner))
        start = torch.nonzero(real & ((voice == 4) | opens)).flatten()
        if len(start) == 0:  # only padding, as in the last rows of a rank; but with sharding every rank must compute
            start = start.new_zeros(1)
        piece = owner[start]
        kept, piece = torch.unique_consecutive(piece, return_inverse=True)
        index = torch.arange(len(start), device=device)
        first = torch.searchsorted(piece, torch.arange(len(kept), device=device))
        number = index - first[piece]
        reach = start[:, None] + torch.arange(4, device=device)
        inside = reach.clamp(max=size - 1)
        steps = torch.arange(4, device=device)
        places = (reach < size) & (owner[inside] == owner[start][:, None]) & ((steps == 0) | (voice[inside] == steps))
        lengths = torch.bincount(piece, minlength=len(kept)).tolist()
        # The tokens of frame k are at start + 1 to start + 4.
        filled = (reach + 1).clamp(max=size - 1)
        within = (reach + 1 < size) & (owner[filled] == owner[start][:, None])
        values = torch.where(within, self._pitch(tokens_bt.flatten()[filled]), REST)
        pitches = torch.full((len(kept), max(lengths), 4), REST, device=device)
        pitches[piece, number] = values
        renumber = torch.zeros(int(owner[-1]) + 1, dtype=torch.long, device=device)
        renumber[kept] = torch.arange(len(kept), device=device)
        return Frames(
            start=start,
            piece=piece,
            number=number,
            places=places,
            pitches=pitches,
            lengths=lengths,
            controls=real & (voice == 0),
            owner=renumber[owner],
        )

    def _pitch(self, tokens: Tensor) -> Tensor:
        return torch.where(tokens > self.rest_id, tokens - self.rest_id - 1 + self.low, REST)

    def _angles(self, number: Tensor, soprano: Tensor) -> tuple[Tensor, Tensor]:
        angles = (number[..., None] * self.time_rate + soprano[..., None] * self.pitch_rate).flatten(0, -2)[:, None]
        return angles.cos(), angles.sin()

    def _trunk(
        self, ids: Tensor, chroma: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor], *,
        packing: Packing | None = None, cache: KVCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the trunk's output [b, m, 4, e] for features [b, m, c]."""
        soprano = torch.zeros(ids.shape[:-1], dtype=torch.long, device=ids.device)
        x_bmd = self._drop(self._to_compute_dtype(self.frame_context(ids, chroma, soprano) + condition))
        rotary = (rotary[0].to(x_bmd.dtype), rotary[1].to(x_bmd.dtype))
        for layer, block in enumerate(self.blocks):
            x_bmd = block(x_bmd, rotary, packing=packing, cache=cache, layer=layer)
        return torch.unflatten(self.to_decoder(kernels.rms_norm(x_bmd, fused=self.fused)), -1, (4, self.decoder_dim))

    def _decode(
        self, trunk: Tensor, ids: Tensor, chroma: Tensor, references: Tensor, voices: Tensor, found: Tensor | None
    ) -> Tensor:
        """Returns float32 logits [..., v] of the next token.

        trunk: its output [..., e]. ids, chroma: the context [..., c] and [..., 24]. references: [..., 5], the pitches from which
        it is counted. voices: of the token, 0 to 3 [...]. found: in similar passages, see `PassageReader.look_up`.
        """
        x = trunk + self._drop(self._to_compute_dtype(self.token_context(ids, chroma, voices)))
        if self.passages is not None and found is not None:
            remembered, found = self.passages(found)
            x = x + self._to_compute_dtype(remembered)
        for layer in self.decoder:
            x = x + self._drop(layer(kernels.rms_norm(x, fused=self.fused)))
        x = self._drop(kernels.rms_norm(x, fused=self.fused))
        absolute = self.absolute(x).float()
        relative = torch.unflatten(self.relative(x).float(), -1, (NUM_REFERENCES, 2 * self.span + 1))
        pitch = torch.arange(self.low, self.high + 1, device=ids.device)
        steps = pitch - references.clamp(self.low, self.high)[..., None] + self.span
        notes, rest = absolute[..., 1:-1] + relative.gather(-1, steps).sum(-2), absolute[..., :1]
        if self.passages is not None and found is not None:
            for_notes, for_rest = self.passages.evidence(x, found, ids[..., OWN], pitch)
            notes, rest = notes + for_notes, rest + for_rest
        logits: Tensor = notes.new_full((*notes.shape[:-1], self.vocab_size), IMPOSSIBLE)
        logits[..., self.rest_id :] = torch.cat([rest, notes], dim=-1)
        logits[..., EOS] = torch.where(voices == 0, absolute[..., -1], IMPOSSIBLE)
        return logits

    def _to_compute_dtype(self, x: Tensor) -> Tensor:
        kind = x.device.type
        return x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.to_decoder.weight.dtype)

    def _drop(self, x: Tensor) -> Tensor:
        return kernels.dropout(x, self.dropout) if self.training and self.dropout else x

    def _extend(self, tokens_bt: Tensor, voice_bt: Tensor, cache: GridCache) -> Tensor:
        """Returns the logits of the new tokens; all rows must be at the same position in a frame."""
        num_controls = int((voice_bt[0] == 0).sum()) if cache.context.count == 0 else 0
        logits = tokens_bt.new_full((*tokens_bt.shape, self.vocab_size), IMPOSSIBLE, dtype=torch.float32)
        if num_controls:
            embedded = self.controls(tokens_bt[:, :num_controls]).sum(1)
            cache.condition = embedded if cache.condition is None else cache.condition + embedded
            logits[:, num_controls - 1] = self._next(cache)
        for place in range(num_controls, tokens_bt.shape[1]):
            cache.push(self._pitch(tokens_bt[:, place]))
            logits[:, place] = self._next(cache)
        return logits

    def _next(self, cache: GridCache) -> Tensor:
        """Returns the logits [b, v] of the next token, of which the cache knows everything before it."""
        frame, voice = divmod(cache.context.count, 4)
        ids, chroma, references = cache.context.next()
        if voice == 0:
            cache.keys.reserve(1)
            condition = cache.condition
            assert condition is not None, "the first token of a row is BOS or CONT"
            number = torch.full((cache.batch,), frame, device=ids.device)
            cache.current_frame = self._trunk(
                ids[:, None], chroma[:, None], condition[:, None], self._angles(number, references[:, 0]), cache=cache.keys
            )[:, 0]
            cache.keys.length += 1
        assert cache.current_frame is not None
        voices = torch.full((cache.batch,), voice, device=ids.device)
        found = None if cache.search is None else torch.from_numpy(cache.search.propose()).to(ids.device)
        return self._decode(cache.current_frame[:, voice], ids, chroma, references, voices, found)

    def new_cache(self, batch: int, max_len: int | None = None, dtype: torch.dtype | None = None) -> GridCache:
        """Returns an empty cache for `batch` rows of at most max_len tokens."""
        weight = self.to_decoder.weight
        num_heads, head_dim = self._heads
        keys = KVCache(
            num_layers=len(self.blocks), batch=batch, num_kv_heads=num_heads, head_dim=head_dim,
            max_len=(max_len or self.max_len) // 4 + 2, dtype=dtype or weight.dtype, device=weight.device,
        )  # fmt: skip
        return GridCache(keys, batch, None if self.passages is None else PassageSearch(self.passages.memory, batch))

    def num_parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(p.numel() for p in self.parameters())
