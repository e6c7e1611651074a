"""State of generating four voices on a grid token by token: what `grid_context` computes of all frames, kept up to date.

A token costs the same however long the piece is, but for the search for repetitions, which looks at one earlier token per beat.

Shapes: b rows, u tokens so far, k distances of a repetition, c context columns, e decoder width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.models.symbolic.grid_context import (
    AGES,
    CHROMA_DECAY,
    INITIAL_PITCHES,
    INTERVALS,
    LAG,
    OPENING,
    REST,
    SPAN,
    bucket,
    clipped_interval,
    turned_chroma,
)
from etude.models.symbolic.kv_cache import KVCache
from etude.models.symbolic.passage_memory import PassageSearch

HISTORY = 4  # last pitches of a voice that the context looks at


class RunningContext:
    """The context of the next token of rows of pitches, which are given one token at a time.

    Args:
        batch: number of rows b, all at the same position.
        device: of all state.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.count = 0
        self._tokens = torch.empty(batch, 4 * LAG, dtype=torch.long, device=device)  # grows by doubling
        initial = torch.tensor(INITIAL_PITCHES, device=device)
        self._pitches = initial[None, :, None].repeat(batch, 1, HISTORY)  # of each voice, the latest first
        self._soprano = initial[0].repeat(batch)  # its last pitch before the frame
        self._latest = initial.repeat(batch, 1)  # the last token of each voice, which may be a rest
        self._age = torch.zeros(batch, 4, dtype=torch.long, device=device)
        self._total = torch.zeros(batch, 12, device=device)
        self._recent = torch.zeros(batch, 12, device=device)
        self._frame = torch.zeros(batch, 12, device=device)  # the pitch classes of the frame that is not complete yet
        # lengths of the passages that end with the last token, and with the last one of each voice, at each distance
        self._any_run = torch.zeros(batch, 0, dtype=torch.int16, device=device)
        self._voice_run = torch.zeros(4, batch, 0, dtype=torch.int16, device=device)

    @property
    def tokens(self) -> Tensor:
        """The pitches so far, [b, u], `REST` for a rest."""
        return self._tokens[:, : self.count]

    def push(self, pitch_b: Tensor) -> None:
        """Takes the next token of each row: a MIDI pitch or `REST`."""
        voice = self.count % 4
        if voice == 0:
            self._soprano = self._pitches[:, 0, 0].clone()
        self._remember(pitch_b, voice)
        sounding = pitch_b != REST
        last = self._pitches[:, voice, 0]
        moved = sounding & (pitch_b != last)
        shifted = torch.cat([pitch_b[:, None], self._pitches[:, voice, :-1]], dim=1)
        self._pitches[:, voice] = torch.where(moved[:, None], shifted, self._pitches[:, voice])
        same = pitch_b == self._latest[:, voice]
        self._age[:, voice] = torch.where(same, self._age[:, voice] + 1, 0)
        self._latest[:, voice] = pitch_b
        self._frame.scatter_add_(1, (pitch_b.clamp(min=0) % 12)[:, None], sounding[:, None].float())
        if voice == 3:
            self._total += self._frame
            self._recent = CHROMA_DECAY * self._recent + (1 - CHROMA_DECAY) * self._frame
            self._frame = torch.zeros_like(self._frame)

    def _remember(self, pitch_b: Tensor, voice: int) -> None:
        if self.count == self._tokens.shape[1]:
            self._tokens = F.pad(self._tokens, (0, self.count))
        self._tokens[:, self.count] = pitch_b
        self.count += 1
        longest = (self.count - 1) // LAG  # distances at which there is an earlier token
        if longest > self._any_run.shape[1]:
            self._any_run, self._voice_run = F.pad(self._any_run, (0, 1)), F.pad(self._voice_run, (0, 1))
        if longest:
            equal = self._earlier(self.count - 1) == pitch_b[:, None]
            self._any_run = torch.where(equal, self._any_run + 1, 0)
            self._voice_run[voice] = torch.where(equal, self._voice_run[voice] + 1, 0)

    def _earlier(self, place: int) -> Tensor:
        """The tokens that lie LAG, 2 LAG, ... before a place, [b, k]."""
        return self._tokens[:, place % LAG : place - LAG + 1 : LAG].flip(1)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ids [b, c] and chroma [b, 24] of the next token, as of `grid_context.Context`, and references [b, 5].

        The references are the last pitch of each voice, and the soprano's before the frame.
        """
        frame, voice = divmod(self.count, 4)
        last, own = self._pitches[..., 0], self._pitches[:, voice, 0]
        numbers = own.new_tensor([[frame % 16, frame % 12, min(frame, OPENING - 1)]]).expand(len(own), -1)
        ages = torch.where(self._latest != REST, self._age.clamp(max=AGES - 2), AGES - 1)
        columns = [
            numbers, own[:, None], clipped_interval(last - own[:, None]), ages,
            clipped_interval(self._pitches[..., 1] - last), clipped_interval(self._pitches[..., 2] - last),
            clipped_interval(self._pitches[:, voice, 3] - own)[:, None],
            *self._repetition(self._any_run, own), *self._repetition(self._voice_run[voice], own),
        ]  # fmt: skip
        share = self._total / self._total.sum(1, keepdim=True).clamp(min=1)
        both = torch.stack([share * 4, self._recent], dim=1)
        before = last[:, 0] if voice == 0 else self._soprano
        return torch.cat(columns, dim=-1), turned_chroma(both, own), torch.cat([last, before[:, None]], dim=1)

    def _repetition(self, run_bk: Tensor, own_b: Tensor) -> tuple[Tensor, Tensor]:
        """The interval to the token that followed the longest repeated passage, and the length of that passage, [b, 1] each."""
        if not run_bk.shape[1]:
            nothing = torch.zeros_like(own_b)[:, None]
            return nothing + SPAN, bucket(nothing)
        length = run_bk.amax(1)
        nearest = (run_bk == length[:, None]).int().argmax(1)  # of equally long ones the latest
        source = (self.count - (nearest + 1) * LAG).clamp(min=0)
        following = self._tokens.gather(1, source[:, None])[:, 0]
        interval = torch.where(following == REST, INTERVALS - 1, clipped_interval(following - own_b))
        interval = torch.where(length == 0, SPAN, interval)
        return interval[:, None], bucket(length)[:, None]

    def select(self, rows: Tensor) -> None:
        """Makes row i a copy of the former row rows[i]; their number may change."""
        for name in ("_tokens", "_pitches", "_soprano", "_latest", "_age", "_total", "_recent", "_frame", "_any_run"):
            setattr(self, name, getattr(self, name)[rows])
        self._voice_run = self._voice_run[:, rows]


class GridCache:
    """State of generation: the running context, the control vector, the trunk's key-value cache, the current frame.

    Args:
        keys: cache of the trunk, with one position per frame.
        batch: number of rows.
        search: for similar passages of the training pieces; None if the model has no memory of them.
    """

    def __init__(self, keys: KVCache, batch: int, search: PassageSearch | None = None) -> None:
        self.keys, self.batch, self.search = keys, batch, search
        self.context = RunningContext(batch, keys.device)
        self.condition: Tensor | None = None  # [b, d], once there is a token
        self.current_frame: Tensor | None = None  # the decoder's input [b, 4, e] for the frame that is being generated

    def push(self, pitch_b: Tensor) -> None:
        """Takes the next token of each row: a MIDI pitch or `REST`."""
        self.context.push(pitch_b)
        if self.search is not None:
            self.search.push(pitch_b.cpu().numpy())

    def select(self, rows: Tensor) -> None:
        """Makes row i a copy of the former row rows[i]; their number may change."""
        self.batch = len(rows)
        if self.search is not None:
            self.search.select(rows.cpu().numpy())
        self.keys.select(rows)
        self.context.select(rows)
        self.condition = None if self.condition is None else self.condition[rows]
        self.current_frame = None if self.current_frame is None else self.current_frame[rows]
