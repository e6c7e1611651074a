"""Write samples of a language model as MIDI, audio and piano rolls, with a report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from symusic import Score

from etude.core.protocols import Blends, Composes, Infills
from etude.generation.asking import METHOD, Request, check_method, read_request
from etude.generation.latents import LatentWish, latent_wish, tell_latents
from etude.generation.ranking import Kept, best_of_each, ranking, tell_ranking
from etude.generation.telling import begin, file_names, portions, tell_repetition, tell_requests
from etude.generation.writing import described, write_sample
from etude.render.scores import render
from etude.render.synthesizers import Synthesizer, check_synthesizer
from etude.report.media import write_table
from etude.report.reports import Report
from etude.report.run_page import end_report
from etude.wording import counted

Writer = TypeVar("Writer", bound=Callable[..., Any])
BATCH = 16  # samples drawn at once; what is drawn is written before the next batch begins


def checked_ahead(
    check: Callable[[Mapping[str, Any]], None],
    check_requests: Callable[[Mapping[str, Any], Composes], object],
    few: Mapping[str, Any],
) -> Callable[[Writer], Writer]:
    """Marks a function that writes samples as one whose options can be tested before training.

    check: whether they can be met on this machine; see `ChecksOptions`.
    check_requests: whether a model can be asked for them; see `ChecksRequests`.
    few: how much is enough while a model trains; see `FewSamples`.
    """

    def mark(function: Writer) -> Writer:
        function.__dict__.update(check=check, check_requests=check_requests, few=few)
        return function

    return mark


def check_rendering(options: Mapping[str, Any]) -> None:
    """Raises ValueError where audio is asked for and can't be rendered here: no such soundfont, or no synthesizer."""
    if options.get("audio", True):
        soundfont = options.get("soundfont")
        check_synthesizer(options.get("synthesizer", "tinysoundfont"), Path(soundfont) if soundfont else None)


def check_requests(options: Mapping[str, Any], task: Composes) -> list[str]:
    """What the model can't be asked exactly, one line each; options are those of `write_samples`.

    Raises ValueError for what can't be asked at all, a prompt that can't be read, or a number out of its range.
    """
    latent_wish(options, task)
    request = read_request(options, task)
    ranking(options, task, labels=request.labels)
    check_method({name: options[name] for name in METHOD if name in options}, request, task, options)
    return [*request.notes, *request.left_out]


@checked_ahead(check_rendering, check_requests, few={"num_samples": 2, "max_new_tokens": 512})
def write_samples(
    *,
    task: Composes,
    folder: Path,
    datamodule: object = None,
    sections: Report | None = None,
    num_samples: int = 4,
    genre: str | None = None,
    key: str | None = None,
    tempo_bpm: float | None = None,
    metre: str | None = None,
    num_bars: int | None = None,
    programs: Sequence[int] | None = None,
    chords: str | None = None,
    chords_strict: bool = False,
    register: Any = None,
    polyphony: Any = None,
    density: Any = None,
    form: str | None = None,
    form_bars: int | None = None,
    prompt: str | Sequence[str] | None = None,
    infill: Mapping[str, Any] | None = None,
    interpolate: Sequence[str] | None = None,
    steps: int | None = None,
    slide: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int = 2048,
    seed: int = 0,
    best_of: int = 1,
    rank_by: str | None = None,
    rank_order: str | None = None,
    real: str | None = None,
    decoding: str = "sample",
    beams: int = 4,
    beam_groups: int = 1,
    diversity: float = 0.5,
    alpha: float = 0.6,
    no_repeat_ngram: int | None = None,
    pitch_penalty: float = 1.0,
    pitch_window: int = 16,
    guidance: float = 0.0,
    draft: object = None,
    draft_length: int = 4,
    audio: bool = True,
    soundfont: str | None = None,
    synthesizer: Synthesizer = "tinysoundfont",
) -> list[Path]:
    """Draws pieces and writes `samples/NNN.mid`, `.wav` and `.png` for each, `samples/samples.csv` and `report.html`.

    Args:
        task: a trained model.
        folder: the run's folder.
        datamodule: not used, a language model needs no data to sample.
        sections: what the report shows before the samples; None for nothing.
        genre, key, tempo_bpm, metre, num_bars, programs: what is asked for, as control tokens; None leaves it open.
        chords: one a bar, "Dm7 G7 Cmaj7 %", see `etude.music.chords`. chords_strict: whether only chord tones may be written.
        register: lowest and highest pitch. polyphony: most notes at a time. density: fewest and most notes that begin in a bar.
            For all tracks but drums, or by track: {"violin": [60, 84]}.
        form: the sections of a piece, such as AABA; those of one letter are alike. form_bars: the bars of each, see
            `etude.music.form.parse_form`. Both need a model with a plan of its bars (tokenizer.form=true).
        prompt: a score file to continue, or to rewrite a passage of; a folder, or a list, of scores to continue, with
            `num_samples` of each, named after them.
        infill: which passage, {"bars": [first, last], "tracks": [...]}, see `etude.music.passages.passage_of`.
        interpolate: two score files, between which `steps` pieces (8 by default) are written, both ends included, whatever
            num_samples is (task=vae).
        slide: attribute (density, pitch) -> by how many standard deviations the bars of `prompt` change (task=vae).
        temperature, top_k, top_p, min_p: see `etude.models.symbolic.sampling.distribution`.
        max_new_tokens: most tokens of a sample.
        seed: the same seed gives the same samples.
        best_of: candidates drawn for each sample, of which the best by `rank_by` is kept; 1 keeps what is drawn.
        rank_by: likelihood (per token, under the model), distance (to the music in `real`), or a metric of a piece such as
            scale_consistency, see `etude.generation.ranking.UNITS`.
        rank_order: highest or lowest; None takes the end that is better, where that is clear.
        real: a folder of scores, for rank_by=distance.
        decoding: sample, contrastive or beam. beams, beam_groups, diversity: of beam search. alpha: of contrastive search, which
            takes top_k as its number of candidates (4 by default).
        no_repeat_ngram: no track plays the same so many notes twice. pitch_penalty: the probabilities of the pitches among the
            last `pitch_window` notes of a track are divided by it.
        guidance: how far what the labels change is exaggerated, see `etude.models.symbolic.guidance`.
        draft: a smaller model of the same tokens, for speculative decoding, which changes the speed alone. draft_length: how many
            tokens it drafts at a time.
        audio: whether to render audio.
        soundfont: an .sf2 file; None takes the one that comes with a dependency.
        synthesizer: tinysoundfont, or fluidsynth where the system has it.

    Returns:
        The MIDI files.

    Raises:
        ValueError: a label that the model or its tokenizer can't be asked for, a prompt that can't be read or represented,
            a number out of its range, a metric that there is not, or fluidsynth where it is not installed.
    """
    # before samples are drawn, which takes longer
    check_rendering({"audio": audio, "soundfont": soundfont, "synthesizer": synthesizer})
    wish = {"genre": genre, "key": key, "tempo_bpm": tempo_bpm, "metre": metre, "programs": programs, "num_bars": num_bars}
    wish |= {"chords": chords, "chords_strict": chords_strict, "register": register, "polyphony": polyphony, "density": density}
    wish |= {"form": form, "form_bars": form_bars}
    asked = {**wish, "num_samples": num_samples, "prompt": prompt, "infill": infill}
    latent = latent_wish({**asked, "interpolate": interpolate, "steps": steps, "slide": slide, "rank_by": rank_by}, task)
    num_samples = num_samples if latent is None else latent.count(num_samples)
    request = read_request(asked, task)
    choice = {"best_of": best_of, "rank_by": rank_by, "rank_order": rank_order, "real": real, "num_bars": num_bars}
    ranked = ranking(choice, task, labels=request.labels)
    method = check_method(
        {
            "decoding": decoding, "beams": beams, "beam_groups": beam_groups, "diversity": diversity, "alpha": alpha,
            "no_repeat_ngram": no_repeat_ngram, "pitch_penalty": pitch_penalty, "pitch_window": pitch_window,
            "guidance": guidance,
            "draft": draft, "draft_length": draft_length,
        }, request, task, {"num_samples": num_samples, "best_of": best_of},
    )  # fmt: skip
    drawing = f"temperature {temperature}, top-k {top_k or 'off'}, top-p {top_p}, min-p {min_p}, seed {seed}"
    drawing += "".join(f", {name} {'yes' if name == 'draft' else value}" for name, value in method.items())
    drawing += f"; of {best_of} candidates the one with the {ranked.order} {ranked.metric}" if ranked is not None else ""
    count = num_samples * max(len(request.prompts), 1)
    report = begin(request, folder, count=count, num_bars=num_bars, prompt=prompt, infill=infill, drawing=drawing)
    if sections is not None:
        report.extend(sections)
    pieces = Report("")
    play = functools.partial(render, soundfont=Path(soundfont) if soundfont else None, synthesizer=synthesizer)
    out = folder / "samples"
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    kept: list[Kept] = []
    names = file_names(request, num_samples)
    where = {"num_bars": num_bars} if request.passage is None else {"passage": request.passage}
    candidates = _candidates(
        task, request, latent, num_samples * best_of, seed=seed, **where, max_new_tokens=max_new_tokens, temperature=temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, **method,
    )  # fmt: skip
    try:
        for name, best in zip(names, best_of_each(candidates, ranked, count=best_of), strict=True):
            kept.append(best)
            files.append(write_sample(best.score, out / f"{name}.mid", pieces, play if audio else None))
    finally:  # Ctrl-C keeps what is done
        wanted = {**request.labels, "num_bars": num_bars} if num_bars else request.labels
        written = portions(request, [best.score for best in kept], num_bars=num_bars)
        rows = [described(best, path, wanted, ranked, piece) for best, path, piece in zip(kept, files, written, strict=False)]
        write_table(out, rows)
        if ranked is not None and kept:
            tell_ranking(ranked, kept, [row.name for row in rows], report)
        if latent is not None:
            tell_latents(latent, [best.score for best in kept], report)
        if no_repeat_ngram is not None:
            tell_repetition(no_repeat_ngram, [best.score for best in kept], report)
        tell_requests(request, [best.score for best in kept], names, report, num_bars=num_bars)
        end_report(report.extend(pieces), folder)
    return files


def _candidates(
    task: Composes, request: Request, latent: LatentWish | None, per_prompt: int, *, seed: int, **how: Any
) -> Iterator[Score]:
    """Yields the samples of the first prompt, then those of the second, and so on; several prompts are in one batch.

    how: options of `LanguageModel.sample` or, with a passage, `LanguageModel.infill`.
    """
    if latent is not None and isinstance(task, Blends):
        how = {name: value for name, value in how.items() if name != "num_bars"}
        with _progress() as (step, _):
            pieces = latent.pieces(task, num_samples=per_prompt, seed=seed, on_step=step, **how)
        yield from pieces
        return
    prompts: list[Any] = list(request.scores) or [None]
    batch = max(BATCH, per_prompt) if how.get("decoding") == "beam" else BATCH  # the best of one search
    together = max(1, batch // per_prompt)
    for first in range(0, len(prompts), together):
        chosen = prompts[first : first + together]
        prompt = chosen[0] if len(chosen) == 1 else chosen
        for start in range(0, per_prompt, batch):
            size = min(batch, per_prompt - start)
            yield from _draw(task, size, labels=request.labels, prompt=prompt, seed=seed + start, **how)


def _draw(task: Composes, size: int, **options: Any) -> Sequence[Score]:
    with _progress() as (step, begin_round):
        if "passage" in options and isinstance(task, Infills):
            return task.infill(num_samples=size, on_step=step, **options)
        return task.sample(num_samples=size, on_step=step, on_round=begin_round, **options)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int, int, int], None]]]:
    """Shows a bar; yields what to call with the number of tokens, and before each round that a key takes."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.completed} tokens each"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("sampling", total=None)

        def begin_round(number: int, most: int, count: int) -> None:
            if number > 1:  # the first draws them all, whether there is a second or not
                told = f"sampling again, round {number} of {most} at most, {counted(count, 'sample')} not in the key yet"
                progress.update(bar, completed=0, description=told)

        yield lambda tokens: progress.update(bar, completed=tokens), begin_round
