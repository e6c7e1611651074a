"""What a user asks of a style transfer: checked, with one line for what can't be done.

Shapes: m mel bands, f frames.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.audio.files import read_audio
from etude.core.audio_protocols import UsesReferenceClips
from etude.transfer.stream import StyleModel, StyleRequest, device_of

OPENING_SECONDS = 30  # from the beginning of a file, to guess its style


def asked(
    task: Any,
    vocoder: Any,
    *,
    style: str | Mapping[str, float] | None,
    source: str | None,
    reference: str | None,
    intensity: float,
) -> StyleRequest:
    """Returns the request of a user, after checking it, the model and the vocoder; arguments as of `restyle`.

    Raises:
        ValueError: see `checked_request`; or the model changes no styles, or the vocoder has another mel contract.
        AudioError: the reference can't be read.
    """
    if not isinstance(intensity, int | float):
        raise ValueError(f"intensity is {intensity}, must be a number within [0, 1]")
    if not isinstance(task, StyleModel):
        raise ValueError(f"ckpt holds a {type(task).__name__}, which changes no styles; give one of task=style_transfer")
    if difference := task.contract.difference(vocoder.contract):
        raise ValueError(f"the vocoder was made for another mel contract ({difference}); choose vocoder=griffin_lim")
    clip = None if reference is None else reference_mel(Path(reference).expanduser(), task)
    if clip is not None and not style:
        distances = task.style_distances(clip)
        style = min(distances, key=lambda name: distances[name])
    return checked_request(task.styles, style, source, intensity, clip)


def checked_request(
    styles: tuple[str, ...], style: str | Mapping[str, float] | None, source: str | None, intensity: float, clip: Tensor | None
) -> StyleRequest:
    """Returns what is asked for, after checking it.

    Args:
        styles: of the model. style: a name, or weights that add up to 1. source: the style of the input; None to guess it.
        intensity: within [0, 1]. clip: natural-log mels [m, f] of a reference.

    Raises:
        ValueError: a style is unknown or missing, weights don't add up to 1, or the intensity is out of its range.
    """
    known = f"the model knows {', '.join(styles)}"
    if not style:
        raise ValueError(f"style is missing; {known}; give style={styles[-1]}")
    if not isinstance(style, str | Mapping):
        raise ValueError(
            f"style={style} is no style; {known}; give one of them, or a blend with weights: 'style={{rock:0.5,jazz:0.5}}'"
        )
    if isinstance(style, Mapping) and not all(isinstance(share, int | float) for share in style.values()):
        raise ValueError(f"style={dict(style)}: the weights must be numbers, as {{rock:0.5,jazz:0.5}}")
    weights = {style: 1.0} if isinstance(style, str) else {str(name): float(share) for name, share in style.items()}
    for name in [*weights, *([source] if source is not None else [])]:
        if name not in styles:
            hint = "; put a blend in quotes, or the shell splits it: 'style={rock:0.5,jazz:0.5}'" if ":" in name else ""
            raise ValueError(f"{'style' if name in weights else 'source'}={name} is unknown; {known}{hint}")
    if any(not share >= 0 for share in weights.values()) or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"style={weights}: the weights must be at least 0 and add up to 1, as {{rock:0.5,jazz:0.5}}")
    weights = {name: share for name, share in weights.items() if share > 0}
    if list(weights) == [source] and clip is None:
        raise ValueError(f"style={source} is the source's own; {known}; give another")
    if not 0 <= intensity <= 1:
        raise ValueError(f"intensity is {intensity}, must be within [0, 1]; 0 gives the input back")
    return StyleRequest(weights=weights, source=source, intensity=float(intensity), reference=clip)


def reference_mel(path: Path, task: Any) -> Tensor:
    """Returns the log mels [m, f] of the beginning of a reference clip.

    Raises:
        ValueError: the model takes no clips. AudioError: it can't be read.
    """
    if not isinstance(task, UsesReferenceClips) or task.encoder is None:
        raise ValueError(f"reference={path}: this model knows styles only by name; train one with task=stargan to use a clip")
    samples, _ = read_audio(path, sample_rate=task.contract.sample_rate, mono=True)
    opening = samples[:, : OPENING_SECONDS * task.contract.sample_rate]
    log_mel: Tensor = task.contract.log_mel(opening.to(device_of(task)))[0]
    return log_mel
