"""What samples are asked for: labels, the prompts that they continue, and the passage that they fill in."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symusic import Score

from etude.core.protocols import ChoosesDecoding, Composes, Infills
from etude.data.scores.reading import read_guarded, read_prompt
from etude.music.passages import Passage, passage_of
from etude.music.score import SUFFIXES, num_bars, printable
from etude.tokens.tokenizer import FORM, WISHES

ASKED = ("genre", "key", "tempo_bpm", "metre", "programs", *WISHES, *FORM)
METHOD: Mapping[str, Any] = {  # option of the method by which samples are drawn -> its default
    "decoding": "sample", "beams": 4, "beam_groups": 1, "diversity": 0.5, "alpha": 0.6,
    "no_repeat_ngram": None, "pitch_penalty": 1.0, "pitch_window": 16, "guidance": 0.0,
    "draft": None, "draft_length": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A score to continue.

    Attributes:
        name: what the samples that continue it are named after, unique; empty for a single file.
        path: of its file.
        score: its first piece.
    """

    name: str
    path: Path
    score: Score


@dataclass(frozen=True)
class Request:
    """What samples are asked for.

    Attributes:
        labels: name -> value.
        prompts: the scores to continue; none for pieces of the model's own.
        passage: what is filled in of the only prompt; None if prompts are continued.
        notes: what can't be asked exactly, one line each.
        left_out: files that are no prompts, with the reason, one line each.
    """

    labels: Mapping[str, Any]
    prompts: Sequence[Prompt]
    passage: Passage | None
    notes: Sequence[str]
    left_out: Sequence[str]

    @property
    def scores(self) -> list[Score]:
        """The scores of the prompts."""
        return [prompt.score for prompt in self.prompts]


def read_request(options: Mapping[str, Any], task: Composes) -> Request:
    """Reads what is asked for; options are those of `write_samples`.

    Of several prompts, those that can't be read or continued are left out.

    Raises: ValueError for what can't be asked at all, if no prompt is left, or for a number out of its range.
    """
    for name in ("num_samples", "num_bars"):
        if options.get(name) is not None and options[name] < 1:
            raise ValueError(f"{name} is {options[name]}, must be at least 1")
    labels = {name: options[name] for name in ASKED if options.get(name) not in (None, False)}
    prompts, left_out = _prompts(options.get("prompt"))
    passage, notes = _passage(options, task, prompts, labels)
    bars = options.get("num_bars")
    if not prompts or passage is not None:
        plain = labels if passage is None else {name: value for name, value in labels.items() if name not in WISHES}
        return Request(labels, prompts, passage, [*notes, *task.check_request(plain, prompt=None, num_bars=bars)], left_out)
    kept = []
    for prompt in prompts:
        try:
            found = task.check_request(labels, prompt=prompt.score, num_bars=bars)
        except ValueError as error:
            if len(prompts) == 1 and not left_out:
                raise
            left_out.append(f"{printable(prompt.path)}: {error}")
            continue
        kept.append(prompt)
        notes += [f"{prompt.name}: {note}" if prompt.name else note for note in found]
    if not kept:
        raise ValueError(f"prompt: none of {len(left_out)} can be continued, for example {left_out[-1]}")
    return Request(labels, kept, passage, notes, left_out)


def _prompts(prompt: str | Sequence[str] | None) -> tuple[list[Prompt], list[str]]:
    """The prompts of a file, a folder, or a list of both; and what of several can't be read."""
    if prompt is None:
        return [], []
    given = [Path(each).expanduser() for each in ([prompt] if isinstance(prompt, str) else prompt)]
    if not given:
        raise ValueError("prompt=[] names no score; give files or folders, or leave prompt out")
    if isinstance(prompt, str) and not given[0].is_dir():
        return [Prompt("", given[0], read_prompt(given[0]))], []
    paths = [path for each in given for path in (_scores_in(each) if each.is_dir() else [each])]
    for path in paths:
        if not path.exists():
            raise ValueError(f"prompt: there is no file {printable(path)}; give scores, or folders of them")
    return _read(list(dict.fromkeys(paths)))


def _scores_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"prompt={printable(folder)}: it holds no scores; give a folder with {', '.join(sorted(SUFFIXES))}")
    return found


def _read(paths: Sequence[Path]) -> tuple[list[Prompt], list[str]]:
    """The prompts of files, in their order, and what can't be read."""
    found: dict[Path, Score] = {}
    problems: dict[Path, str] = {}
    for path, pieces, problem in read_guarded(paths):
        if pieces:
            found[path] = pieces[0][1]
        else:
            problems[path] = problem or f"{printable(path)}: it holds no piece; give another file"
    if not found:
        raise ValueError(problems[paths[0]])
    names = dict(zip(found, distinct([path.stem for path in found]), strict=True))
    prompts = [Prompt(names[path], path, found[path]) for path in paths if path in found]
    return prompts, [problems[path] for path in paths if path in problems]


def distinct(names: Sequence[str]) -> list[str]:
    """Returns names that differ: those that occur again get a number, such as song_2."""
    taken, seen, result = set(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        unique = name
        while seen[name] > 1 and (unique := f"{name}_{seen[name]}") in taken:
            seen[name] += 1
        taken.add(unique)
        result.append(unique)
    return result


def check_method(method: Mapping[str, Any], request: Request, task: Composes, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of `METHOD` that are not at their default.

    options: num_samples and best_of. Raises: ValueError if the samples can't be drawn in this way.
    """
    given = {name: value for name, value in method.items() if value != METHOD[name]}
    if not given:
        return {}
    name = next(iter(given))
    value = "..." if name == "draft" else given[name]
    if request.passage is not None:
        raise ValueError(f"{name}={value} can't be combined with infill, which draws by sampling; leave {name} out")
    if not isinstance(task, ChoosesDecoding):
        raise ValueError(f"{name}={value}: {type(task).__name__} can only sample; leave {name} out")
    count = (options.get("num_samples") or 1) * (options.get("best_of") or 1)
    task.check_decoding(num_samples=count, labels=request.labels, prompted=bool(request.prompts), **given)
    return given


def _passage(
    options: Mapping[str, Any], task: Composes, prompts: Sequence[Prompt], labels: Mapping[str, Any]
) -> tuple[Passage | None, list[str]]:
    """The passage to fill in, None if the prompts are to be continued; and what the task does not see of the rest."""
    wanted = {name: value for name, value in (options.get("infill") or {}).items() if value is not None}
    if not wanted:
        return None, []
    if len(prompts) != 1:
        few = "needs a score" if not prompts else f"takes one score, prompt= names {len(prompts)}"
        raise ValueError(f"infill {few}: prompt=my.mid infill.bars=[4,8]")
    score = prompts[0].score
    if given := [name for name in ("num_bars", "key", "tempo_bpm", "metre", "programs", *FORM) if options.get(name) is not None]:
        raise ValueError(f"{given[0]} can't be asked for with infill, where the piece has its own; leave {given[0]} out")
    passage = passage_of(score, bars=wanted.get("bars"), tracks=wanted.get("tracks"))
    if not isinstance(task, Infills):
        raise ValueError(
            f"infill: {type(task).__name__} can't fill passages in; take a model that was trained with tokenizer=remi"
        )
    return passage, task.check_infill(score, passage, labels)


def told_prompts(request: Request) -> list[tuple[str, str, int]]:
    """Returns a row (name, file, bars) for each prompt; tells on the terminal which files are left out, and why."""
    for line in request.left_out:
        print(f"left out: {line}", file=sys.stderr)
    return [(prompt.name, printable(prompt.path), num_bars(prompt.score)) for prompt in request.prompts]
