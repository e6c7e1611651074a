"""Key-independent input features of four voices on a grid: what happened before each token.

A network that gets intervals, durations and repetitions instead of pitches need not learn them separately in twelve keys.
Every feature is a function of the tokens before the predicted one, and does not depend on the key, except for `own`.

Shapes: d pieces, f frames, v voices (0 soprano .. 3 bass), u = f * 4 tokens, c categorical features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REST = -1
INITIAL_PITCHES = (71, 66, 60, 52)  # "last pitch" of a voice before its first note: mean of the voice in the JSB chorales
SPAN = 25  # intervals are clipped to +-SPAN semitones
INTERVALS = 2 * SPAN + 2  # the last value stands for a rest
AGES = 19  # frames since a voice changed its pitch, 0 to 17 or more; the last value stands for a rest
LENGTHS = 12  # length of a repeated passage, in powers of two
LAG = 16  # tokens in a quarter note of the sixteenth grid; repetitions are searched at multiples of it
PITCHES = 128
OPENING = 32  # the number of the frame is a feature up to this one
CHROMA_DECAY = 0.5 ** (1 / 16)  # decay per frame of the recent chroma: half in a bar of sixteenths

SIZES: tuple[int, ...] = (
    16, 12, OPENING,  # frame modulo a 4/4 and a 3/4 bar, frames since the start
    PITCHES,  # own: last pitch of the voice
    *(INTERVALS,) * 4,  # interval from it to the last pitch of each voice
    *(AGES,) * 4,  # frames since each voice changed its pitch
    *(INTERVALS,) * 8,  # intervals from the last pitch of each voice to the two before
    INTERVALS,  # interval from own to the fourth last pitch of the voice
    INTERVALS, LENGTHS,  # pitch that followed the longest earlier occurrence of the last tokens, and length of that passage
    INTERVALS, LENGTHS,  # the same for the tokens of this voice only
)  # fmt: skip
OWN = 3
CHROMA = 24


@dataclass(frozen=True)
class Context:
    """Features of every token of every frame, and of one frame after the last.

    ids: int64 [d, f + 1, 4, c], categorical features; `SIZES` gives the number of values of each.
    chroma: float [d, f + 1, 4, 24], share of each pitch class, counted from `own`, in the whole past and in the recent past.
    references: int64 [d, f + 1, 4, 4], the last pitch of each voice.
    """

    ids: Tensor
    chroma: Tensor
    references: Tensor


def compute_context(frames_dfv: Tensor, lengths: Sequence[int] | None = None) -> Context:
    """Returns the features of what is known before each token.

    Args:
        frames_dfv: MIDI pitches, int64 [d, f, 4], `REST` for a rest; values after the end of a piece are ignored.
        lengths: frames of each piece; None if all have f.
    """
    pieces, length, _ = frames_dfv.shape
    device = frames_dfv.device
    initial = torch.tensor(INITIAL_PITCHES, device=device).expand(pieces, 1, 4)
    before = torch.cat([initial, frames_dfv], dim=1)  # row t: the frame before frame t
    time = torch.arange(length + 1, device=device)[None, :, None]
    sounding = before != REST
    last = before.gather(1, _latest(sounding, time))
    age = time - _latest(_changed(before), time)
    since = _latest(_changed(last), time)
    history, moved = [last], since
    for _ in range(3):
        step = (moved - 1).clamp(min=0)
        history.append(last.gather(1, step))
        moved = since.gather(1, step)
    known = [_as_known(x) for x in (*history, torch.where(sounding, age.clamp(max=AGES - 2), AGES - 1))]
    last_k, second_k, third_k, fourth_k, age_k = known
    own = torch.diagonal(last_k, dim1=2, dim2=3)  # [d, f + 1, 4]
    fourth = torch.diagonal(fourth_k, dim1=2, dim2=3)
    now = time.expand(pieces, -1, 4)
    columns = [
        (now % 16)[..., None], (now % 12)[..., None], now.clamp(max=OPENING - 1)[..., None], own[..., None],
        clipped_interval(last_k - own[..., None]), age_k, clipped_interval(second_k - last_k), clipped_interval(third_k - last_k),
        clipped_interval(fourth - own)[..., None],
    ]  # fmt: skip
    tokens_du = torch.cat([frames_dfv.flatten(1), frames_dfv.new_full((pieces, 4), REST - 1)], dim=1)
    for every in (1, 4):
        if lengths is None:
            following, size = _repeats(tokens_du, every=every)
        else:
            following, size = _repeats_by_length(tokens_du, lengths, every=every)
        following, size = following.view(pieces, -1, 4), size.view(pieces, -1, 4)
        interval = torch.where(following == REST, INTERVALS - 1, clipped_interval(following - own))
        interval = torch.where(size == 0, SPAN, interval)
        columns += [interval[..., None], bucket(size)[..., None]]
    return Context(torch.cat(columns, dim=-1), _chroma(frames_dfv, own), last_k)


def _changed(x_dfv: Tensor) -> Tensor:
    first = torch.ones_like(x_dfv[:, :1], dtype=torch.bool)
    return torch.cat([first, x_dfv[:, 1:] != x_dfv[:, :-1]], dim=1)


def _latest(flags_dfv: Tensor, time: Tensor) -> Tensor:
    """Returns the index of the last True at or before each frame, 0 if there is none."""
    return torch.where(flags_dfv, time, 0).cummax(1).values


def _as_known(x_dfv: Tensor) -> Tensor:
    """Returns the latest known value of each voice before token (f, v), [d, f, v, 4]; voices above belong to the same frame."""
    later = torch.cat([x_dfv[:, 1:], x_dfv[:, -1:]], dim=1)
    above = torch.ones(4, 4, dtype=torch.bool, device=x_dfv.device).tril(-1)
    return torch.where(above, later[:, :, None, :], x_dfv[:, :, None, :])


def clipped_interval(semitones: Tensor) -> Tensor:
    """Returns the index of an interval, in [0, 2 SPAN]."""
    return semitones.clamp(-SPAN, SPAN) + SPAN


def bucket(length: Tensor) -> Tensor:
    """Returns the power of two, rounded up, of the length of a passage plus one, below LENGTHS."""
    return (length + 1).double().log2().ceil().long().clamp(max=LENGTHS - 1)


def _repeats_by_length(tokens_du: Tensor, lengths: Sequence[int], *, every: int) -> tuple[Tensor, Tensor]:
    """Returns `_repeats` of each piece separately: its cost grows with the square of the length, padding included."""
    following, size = torch.zeros_like(tokens_du), torch.zeros_like(tokens_du)
    for row, frames in enumerate(lengths):
        stop = 4 * (frames + 1)
        found = _repeats(tokens_du[row : row + 1, :stop], every=every)
        following[row, :stop], size[row, :stop] = (x[0] for x in found)
    return following, size


def _repeats(tokens_du: Tensor, *, every: int) -> tuple[Tensor, Tensor]:
    """Finds the longest earlier passage that equals the last tokens; returns the token that followed it, and its length.

    every: 1 compares all tokens, 4 only those of the same voice. Among passages of equal length the latest is taken.

    Returns:
        The following token and the length, [d, u] each; the token is undefined where the length is 0.
    """
    pieces, size = tokens_du.shape
    lags = range(LAG, size, LAG)
    if not lags:
        return torch.zeros_like(tokens_du), torch.zeros_like(tokens_du)
    tokens = tokens_du.to(torch.int16)  # int16 saves memory: the arrays below are large
    equal = torch.zeros(pieces, len(lags), size, dtype=torch.bool, device=tokens.device)
    for number, lag in enumerate(lags):
        torch.eq(tokens[:, lag:], tokens[:, :-lag], out=equal[:, number, lag:])
    place = (torch.arange(size, device=tokens.device) // every).to(torch.int16)
    miss = torch.where(equal, place.new_tensor(-1), place)
    run = place.repeat(pieces, len(lags), 1)
    if every == 1:
        run -= miss.cummax(2).values
    else:
        run -= torch.unflatten(miss, 2, (-1, every)).cummax(2).values.flatten(2)
    shifted = torch.zeros_like(run)
    shifted[..., every:] = run[..., :-every]  # passages that end before this token
    for number, lag in enumerate(lags):
        shifted[:, number, :lag] = 0
    length, _ = shifted.max(1)
    latest = torch.arange(len(lags), 0, -1, dtype=torch.int16, device=tokens.device)
    chosen = len(lags) - torch.where(shifted == length[:, None], latest[:, None], 0).amax(1).long()
    source = torch.arange(size, device=tokens.device) - (chosen + 1) * LAG
    return tokens_du.gather(1, source.clamp(min=0)), length.long()


def _chroma(frames_dfv: Tensor, own_dfv: Tensor) -> Tensor:
    pieces, length, _ = frames_dfv.shape
    sounding = (frames_dfv != REST).float()
    heard = torch.zeros(pieces, length + 1, 12, device=frames_dfv.device)
    heard[:, 1:].scatter_add_(2, frames_dfv.clamp(min=0) % 12, sounding)
    total = heard.cumsum(1)
    total = total / total.sum(2, keepdim=True).clamp(min=1)
    time = torch.arange(length + 1, device=frames_dfv.device)
    lag = time[:, None] - time[None]
    weight = torch.where(lag >= 0, (1 - CHROMA_DECAY) * CHROMA_DECAY ** lag.clamp(min=0), 0.0)
    both = torch.stack([total * 4, weight @ heard], dim=2)  # [d, f + 1, 2, 12]
    return turned_chroma(both[:, :, None].expand(-1, -1, 4, -1, -1), own_dfv)


def turned_chroma(chroma: Tensor, own: Tensor) -> Tensor:
    """Returns chroma [..., 2, 12] counted from the pitches own [...], as [..., 24]."""
    turn = (torch.arange(12, device=own.device) + own[..., None]) % 12
    return chroma.gather(-1, turn[..., None, :].expand(*own.shape, 2, 12)).flatten(-2)
