"""Builds the configuration of a command: reads its options, runs stages, chooses the evaluation."""

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from etude.core.called import program
from etude.run.starting import named_start, named_weights

if TYPE_CHECKING:
    from etude.core.task import Task
    from etude.core.technique import Technique

FAST = {"true": "fast", "false": "[]"}  # fast_convergence= as a choice of convergence=; Hydra takes no null there
PRETRAINING = "data=corpus"  # whose tokens and networks suit data=folder, too, on which stage=finetune then goes on
REQUIRED = ("task", "data", "model", "optimizer", "trainer")  # groups of train.py of which a run needs a choice
OPTIONAL = (  # groups of train.py in which null chooses nothing
    "experiment", "genre", "level", "convergence", "stage", "sweep", "technique", "scheduler", "tokenizer", "discriminator",
    "objective", "algorithm", "reads", "sampling", "logger", "contract",
)  # fmt: skip
WANTED = {"representation": "objective", "mel_representation": "objective", "few_shot": "algorithm"}  # needed by these tasks
KEPT = (  # what a stage takes over from the run it starts from
    "experiment", "task", "data", "contract", "model", "tokenizer", "discriminator", "objective", "algorithm", "styles", "heads",
    "sharing",
)  # fmt: skip


def pick(choice: str | None, *cases: str) -> str:
    """Returns the value of the first case that names `choice`, or that has no name; the files of conf/ call it.

    cases: "choice:value", "choice+another:value", or "value" for all other choices.

    Raises: ValueError where no case names it and all have names.
    """
    for case in map(str, cases):  # a number is read as one
        names, named, value = case.partition(":")
        if not named or str(choice) in names.split("+"):
            return value if named else names
    raise ValueError(f"{choice} is none of {', '.join(case.partition(':')[0] for case in cases)}")


def fastest_precision(accelerator: str) -> str:
    """The precision in which this machine trains fastest: "bf16-mixed" if it computes in bfloat16, and "32-true" if it does not.

    Without such instructions a CPU emulates bfloat16, which is several times slower than float32.

    accelerator: the trainer's; "auto" is the GPU where there is one.
    """
    import torch

    from etude.core.processor import cpu_computes_bfloat16

    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return "bf16-mixed"
    return "bf16-mixed" if cpu_computes_bfloat16() else "32-true"


OmegaConf.register_new_resolver("pick", pick, replace=True)
OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)


def spelled_out(options: list[str], presets: list[str] | None = None) -> list[str]:
    """Returns the options of train.py as Hydra knows them: `fast_convergence=true` becomes `convergence=fast`, and `level=null`,
    which chooses nothing from a group, becomes `level=[]`.

    presets: the files of conf/genre; None leaves genres unchecked.

    Raises: ValueError for a genre without a preset, which Hydra would only call a file that is missing, and for null as the
        choice of a group of which a run needs one.
    """
    found = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "genre" and presets is not None and "(" not in value:
            for genre in value.split(","):
                if genre not in (*presets, "null"):
                    raise ValueError(
                        f"genre={genre} has no preset; presets: {', '.join(presets)}. Music of any genre trains without one: "
                        f"leave genre= out; for that genre of your data alone, name its folder: data.root=my_songs/{genre}"
                    )
        found.append(_without_null(with_convergence(option)))
    said = {key(option): option.partition("=")[2] for option in options}
    if (wanted := WANTED.get(said.get("task", ""))) and said.get(wanted) == "null":
        raise ValueError(f"{wanted}=null: task={said['task']} needs one; leave {wanted}= out for the default")
    elsewhere = said.keys() & {"data", "experiment"} or said.get("task", "language_model") != "language_model"
    return found if said.get("stage") != "pretrain" or elsewhere else [*found, PRETRAINING]


def _without_null(option: str) -> str:
    """Returns the option with `[]` for null if it names a group. Raises: ValueError if a run needs a choice of that group."""
    name, _, value = option.partition("=")
    if name not in (*REQUIRED, *OPTIONAL) or "null" not in (choices := _separated(value)):
        return option
    if name in REQUIRED:
        raise ValueError(f"{option}: a run needs a {name}; leave {name}= out for the default; --help lists the choices")
    return f"{name}=" + ",".join("[]" if choice == "null" else choice for choice in choices)


def _separated(value: str) -> list[str]:
    """Returns the parts of a sweep's value: those that commas outside brackets separate."""
    parts, depth = [""], 0
    for sign in value:
        depth += (sign in "[({") - (sign in "])}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def with_convergence(option: str) -> str:
    """Returns `convergence=fast` for `fast_convergence=true`, other options unchanged. Raises: ValueError for another value."""
    name, _, value = option.partition("=")
    if name != "fast_convergence":
        return option
    if unknown := set(value.lower().split(",")) - FAST.keys():
        raise ValueError(f"fast_convergence={min(unknown)}: must be true or false")
    return "convergence=" + ",".join(FAST[each] for each in value.lower().split(","))


def compose(options: list[str], *, program: str = "train") -> DictConfig:
    """Returns the configuration of this program with other options."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    return hydra.compose(HydraConfig.get().job.config_name or program, overrides=options)


def command_line() -> list[str]:
    """Returns the options that the user gave, except `ckpt`; `trial`, which a sweep gives, belongs to one command only, too."""
    from hydra.core.hydra_config import HydraConfig

    return [option for option in HydraConfig.get().overrides.task if key(option) not in ("ckpt", "trial")]


def key(option: str) -> str:
    return option.partition("=")[0].lstrip("+~")


def pinned(options: list[str], techniques: Iterable["Technique"]) -> list[str]:
    """Returns the options with the paths that techniques found for `last` or a folder; a resumed run then uses the same files."""
    found = {f"technique.{technique.name}.{name}": path for technique in techniques for name, path in technique.paths().items()}
    kept = [option for option in options if key(option) not in found]
    return [*kept, *(f"{name}={json.dumps(str(path))}" for name, path in found.items())]


def taken_over(earlier: list[str], path: Path) -> list[str]:
    """Returns the options of an earlier run that a new run may use; prints those that it may not use, such as output folders.

    earlier: the options of the run that wrote the checkpoint `path`.

    Raises:
        ValueError: one of them is none that a run of Etude can have, or asks for something to be computed.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from etude.core.recipe_check import may_use_option

    kept: list[str] = []
    left: list[str] = []
    try:
        for option in earlier:
            parsed = OverridesParser.create().parse_override(option)
            if parsed.is_sweep_override() or parsed.package is not None:
                raise ValueError(f"has the option {option[:80]!r}, which no run of Etude has")
            (kept if may_use_option(parsed.key_or_group, parsed.value()) else left).append(option)
    except (ValueError, OverrideParseException) as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: its run {told}; don't continue checkpoints of someone you don't trust") from error
    if left:
        told = f"not taken over from {path}, since it says where to write or send, or to download: {' '.join(left)}"
        print(told, file=sys.stderr)
    return kept


def train_phases(cfg: DictConfig, folder: Path, overrides: list[str], run: Callable[..., float | None]) -> float | None:
    """Trains one phase after another, each in its own folder and from the weights of the phase before; returns the last result.

    Techniques keep between phases what their `carried_state` returns."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict, read_write

    from etude.core.checkpoint_search import find_checkpoint
    from etude.run import again

    if cfg.ckpt:
        raise ValueError("ckpt= continues one run; leave stage= out, or start a phase from weights with weights=")
    shared = [option for option in overrides if key(option).partition(".")[0] != "stage"]
    weights: str | Path | None = named_weights(cfg)
    value = None
    for number, phase in enumerate(cfg.stage.phases, start=1):
        part = folder / f"{number}_{phase.name}"
        (part / "checkpoints").mkdir(parents=True, exist_ok=True)
        mine = {key(option) for option in phase.options} | {"weights"}
        options = [*(option for option in shared if key(option) not in mine), *phase.options]
        settings: Any = HydraConfig.get()
        with read_write(settings), open_dict(settings):
            settings.runtime.output_dir = str(part)  # where this phase's loggers write
        start = ["weights=null"] if weights is None else [f"weights={json.dumps(str(weights))}"]
        if cfg.autoresume and (end := again.finished(part)) is not None:
            value, weights = end.value, _result(part)
            continue
        resume = find_checkpoint(str(part), cfg.outputs) if cfg.autoresume and again.has_begun(part) else None
        print(f"phase {number} of {len(cfg.stage.phases)}, {phase.name}: {' '.join(phase.options)}", file=sys.stderr)
        composed = compose([*options, *start])
        try:
            value = run(composed, part, options, resume)
        except SystemExit:
            before = part
            for place, later in enumerate(cfg.stage.phases[number:], start=number + 1):
                line = shlex.join([*shared, *later.options, f"weights={before / 'checkpoints' / 'best.ckpt'}"])
                print(f"then: {program('train')} {line} hydra.run.dir={folder / f'{place}_{later.name}'}", file=sys.stderr)
                before = folder / f"{place}_{later.name}"
            raise
        weights = _result(part)
    return value


def _result(folder: Path) -> Path:
    """Returns the checkpoint with which the phase after that in `folder` starts."""
    best = folder / "checkpoints" / "best.ckpt"
    return best if best.is_file() else best.with_name("last.ckpt")


def starting_point(cfg: DictConfig, options: list[str]) -> tuple[DictConfig, list[str]]:
    """Returns the configuration of a stage that starts from the newest run of the stages `stage.after`, and its options.

    What the user does not say about data, networks and tokens is the earlier run's. `weights=` chooses another run.

    Raises:
        ValueError: there is no such run.
    """
    from etude.core.checkpoint_files import load_checkpoint
    from etude.core.checkpoint_search import find_stage_checkpoint

    after = list(cfg.stage.get("after") or [])
    if not after:
        return cfg, options
    if (path := named_start(cfg)) is None:
        kind = next((option.partition("=")[2] for option in options if key(option) == "task"), None)
        path = find_stage_checkpoint(after, cfg.outputs, wanted=cfg.stage.name, kind=kind)
    mine = {key(option) for option in options}  # data=... takes the place of all that was said about data, data.root=... does not
    recipe = load_checkpoint(path)["etude"]["recipe"]
    earlier = recipe.get("overrides", [])
    kept = taken_over([o for o in earlier if (group := key(o).partition(".")[0]) in KEPT and not mine & {group, key(o)}], path)
    merged = [*kept, *(o for o in options if key(o) != "weights")]
    print(f"stage={cfg.stage.name} starts from {path}{', ' + ' '.join(kept) if kept else ''}", file=sys.stderr)
    found = compose([*merged, f"weights={json.dumps(str(path))}"])
    if not mine & {"name", "data"}:
        found.name = recipe["name"]  # the default name is that of this command's default data
    return found, merged


def start_from(task: "Task", path: Path, techniques: Iterable["Technique"] = ()) -> None:
    """Loads the weights of a checkpoint into a new task, and into its techniques the state that they carry over.

    The optimizer starts anew. The data may differ, as far as the task allows it.

    Raises: ValueError where the networks or what the task learns from differ.
    """
    saved = load_weights(task, path)
    for technique in techniques:
        state = saved.get("callbacks", {}).get(technique.state_key)
        carried = None if state is None else technique.carried_state(state)
        if carried is not None:
            technique.load_state_dict(carried)
    print(f"starting from the weights of {path}", file=sys.stderr)


def load_weights(task: "Task", path: Path) -> dict[str, Any]:
    """Loads the weights of a checkpoint into a new task; returns the checkpoint. Raises: ValueError as `start_from`."""
    from etude.core.checkpoint_files import load_checkpoint

    saved = load_checkpoint(path)
    task.phases.restore_modules(task, saved["etude"])
    weights = task.weights_from(saved, path)
    try:
        task.load_state_dict(weights)
    except RuntimeError as error:
        told = "its networks have other sizes; give the model=, task= and, for audio, contract= options of its run"
        raise ValueError(f"weights={path}: {told}") from error
    return saved


ATTACKED = ("ckpt", "data", "robustness", "outputs", "seed")  # what evaluate.py robustness=NAME reads
MEASURED = ("files", "outputs", "seed")  # what evaluate.py files=FOLDER reads


def check_read(cfg: DictConfig) -> None:
    """Raises ValueError for an option of evaluate.py that an evaluation under attack, or one of files, does not read."""
    from hydra.core.hydra_config import HydraConfig

    for name, read, hint in (
        ("robustness", ATTACKED, " (robustness.KEY=VALUE sets what is attacked)"),
        ("files", MEASURED, ""),
    ):
        unread = [option for option in HydraConfig.get().overrides.task if key(option).split(".")[0] not in read]
        if cfg.get(name) is not None and unread:
            raise ValueError(f"{unread[0]} does nothing beside {name}=; leave it out{hint}")


def scoring(cfg: DictConfig, kind: str, path: Path, *, logs: Sequence[str]) -> DictConfig:
    """Returns the configuration of the evaluation for a task of `kind`, with the options of this command.

    path: the checkpoint. logs: the metrics of its run, for messages.

    Raises: ValueError where another kind is asked for, or there is no table for this one.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices.get("task")
    if chosen not in (None, kind):
        raise ValueError(f"task={chosen}: {path} was trained for {kind}; leave task= out, or give another ckpt=")
    options = HydraConfig.get().overrides.task
    if chosen is not None:
        own: DictConfig = cfg.task
        _refuse_unread(own, kind, options)
        return own
    if kind not in GlobalHydra.instance().config_loader().get_group_options("task"):
        raise ValueError(f"{path} holds a {kind}, which has no table; its {' and '.join(logs)} stands in its run's metrics.csv")
    suited: DictConfig = compose([*options, f"task={kind}"], program="evaluate").task
    _refuse_unread(suited, kind, options)
    return suited


def _refuse_unread(node: DictConfig, kind: str, options: Iterable[str]) -> None:
    """Raises ValueError for an option of evaluate.py that the evaluation of this kind of task, by `node`, does not read."""
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    settings = {str(name): value for name, value in raw.items()}
    read = {str(value).removeprefix("${").removesuffix("}") for value in settings.values()}
    for option in options:
        if key(option).partition(".")[0] not in {*ATTACKED, "files", "task"} - {"seed"} | read:
            own = ", ".join(f"task.{name}" for name in settings if not name.startswith("_") and name not in read)
            raise ValueError(f"{option} does nothing for a {kind}; leave it out; its evaluation has {own}")
