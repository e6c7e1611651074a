"""Composes the configuration of a run that goes on (`ckpt=`): the options of its command, and those of this one over them.

What this command asks for is done, or refused in one line: nothing that the state of the run holds overrides it silently.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from etude.run.recipes import compose, key, taken_over, with_convergence
from etude.run.starting import named_weights

FORMERLY_OPTIONAL = ("genre", "level", "experiment", "stage")  # groups in which an earlier version left out an unknown choice
WITHOUT_SEED = (  # techniques that took a seed in an earlier version and draw nothing
    "bandit", "curriculum", "early_stopping", "ema", "finite", "grow_layers", "loss_schedule", "schedule_free", "self_paced",
    "stability", "stages", "swa", "switch_optimizer",
)  # fmt: skip


def continued(cfg: DictConfig, checkpoint: dict[str, Any], options: list[str], *, path: Path) -> tuple[DictConfig, list[str]]:
    """Returns the configuration with which a run continues from the checkpoint in `path`, and its list of options.

    These are the options of the earlier run; those of this command take precedence.

    Raises: ValueError if this command asks for what a run that goes on can't take: another optimizer, other weights to start
        from, an option with which a technique has made its state.
    """
    from hydra.errors import ConfigCompositionException

    mine = {key(option) for option in options}
    gone = tuple(f"{key(option)}." for option in options if option.startswith("~"))
    recipe = checkpoint["etude"]["recipe"]
    earlier = [*_former_defaults(recipe, options), *_former_tokens(recipe), *_in_use(recipe)]
    earlier = [o for o in earlier if key(o) not in mine and not key(o).startswith(gone or ("\0",))]
    kept = taken_over(earlier, path)
    here = [f"ckpt={json.dumps(cfg.ckpt)}"]
    try:
        found = compose([*kept, *options, *here])
    except ConfigCompositionException:  # something is set of a choice that is no longer made
        kept = [o for o in kept if not _outdated(o, options)]
        found = compose([*kept, *options, *here])
    _check_weights(found, recipe, options, path)
    _check_optimizer(found, recipe, path)
    if changed := _changed(found, checkpoint):
        drifted = _drifted(changed, kept, options, here, checkpoint)
        for option in sorted(changed.keys() - drifted):
            _check_asked(option, *changed[option], checkpoint, path)
        kept += [f"{option}={json.dumps(changed[option][1])}" for option in drifted]
        found = compose([*kept, *options, *here])
    return found, [*kept, *options]


def _changed(cfg: DictConfig, checkpoint: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the options with which the state of the run was made and that `cfg` has otherwise: option -> (now, then).

    These are the optimizer's, which its state holds, and those that techniques name (`Technique.kept_options`).
    """
    from hydra.utils import get_class

    recipe, states = checkpoint["etude"]["recipe"], checkpoint.get("callbacks", {})
    places: list[tuple[str, ...]] = [
        ("optimizer", name) for name in recipe["optimizer"] if not name.startswith("_") and name in cfg.optimizer
    ]
    for name, node in (cfg.get("technique") or {}).items():
        made: Any = get_class(node._target_) if "_target_" in node else None
        state = None if made is None else states.get(made.__qualname__)  # as Lightning names a callback's state
        before = (recipe.get("technique") or {}).get(name)
        if state is not None and before is not None:
            places += [("technique", name, option) for option in sorted(made.kept_options(state) & before.keys() & node.keys())]
    pairs = {".".join(place): (_at(cfg, place), _at(recipe, place)) for place in places}
    return {option: pair for option, pair in pairs.items() if pair[0] != pair[1]}


def _at(node: Any, place: tuple[str, ...]) -> Any:
    """Returns what a configuration has at a place as a plain value; None if it has nothing there."""
    for name in place:
        node = (node or {}).get(name)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _drifted(
    changed: dict[str, tuple[Any, Any]], kept: list[str], options: list[str], here: list[str], checkpoint: dict[str, Any]
) -> list[str]:
    """Returns those of the changed options that this command does not ask for: today's defaults are others than then."""
    from hydra.errors import ConfigCompositionException

    try:
        without = _changed(compose([*kept, *here]), checkpoint)
    except ConfigCompositionException:  # what is left of the earlier options makes no run without those of this command
        mine = {key(option) for option in options}
        return [option for option in changed if not mine & {option, option.partition(".")[0]}]
    return [option for option in changed if without.get(option) == changed[option]]


def _check_asked(option: str, now: Any, then: Any, checkpoint: dict[str, Any], path: Path) -> None:
    """Raises: ValueError where this command gives an option another value that the state of the run can't go on with."""
    switched = (checkpoint.get("callbacks", {}).get("SwitchOptimizer") or {}).get("switched")
    if not option.startswith("technique.") and not switched:
        return  # the optimizer takes it
    what = "its optimizer has been switched" if not option.startswith("technique.") else f"what it remembers was made with {then}"
    raise ValueError(
        f"{option}={now}: the run that goes on can't take this, since {what}; leave it out, or start a new run from the weights: "
        f"weights={path} instead of ckpt="
    )


def takes_settings(cfg: DictConfig, recipe: dict[str, Any]) -> bool:
    """Returns whether the optimizer of a run that goes on gets other settings than its state was saved with.

    cfg: the configuration with which it goes on. recipe: the one of its checkpoint.
    """
    places = (("optimizer",), ("task", "player_lr"), ("technique", "stages", "stages"))
    return any(_at(cfg, place) != _at(recipe, place) for place in places)


def _check_weights(cfg: DictConfig, recipe: dict[str, Any], options: list[str], path: Path) -> None:
    """Raises: ValueError where this command names weights to start from, which the run that goes on has long left behind."""
    named = named_weights(cfg)
    if any(key(option) == "weights" for option in options) and named not in (None, recipe.get("weights")):
        raise ValueError(
            f"weights={named} starts a new run, and ckpt={path} goes on with the weights of its own; leave one of them out"
        )


def _check_optimizer(cfg: DictConfig, recipe: dict[str, Any], path: Path) -> None:
    """Raises: ValueError where `cfg` has another optimizer than the run of the checkpoint `path`, whose moments it can't read."""
    mine, theirs = (str(target).rpartition(".")[2] for target in (cfg.optimizer._target_, recipe["optimizer"]["_target_"]))
    if mine != theirs:
        raise ValueError(
            f"ckpt={path} was trained with the optimizer {theirs}, and {mine} can't go on from what that remembers; leave out "
            f"what chooses {mine}, or start a new run from the weights: weights={path} instead of ckpt="
        )


def _former_defaults(recipe: dict[str, Any], options: list[str]) -> list[str]:
    """Returns the defaults of an earlier version that a run of then goes on with, as options.

    An average that takes each step's weights; for a language model's run from when AdamW was the default, that, its schedule, its
    technique and its length.
    """
    ema = (recipe.get("technique") or {}).get("ema")
    found = ["technique.ema.every=1"] if ema is not None and "every" not in ema else []
    if recipe["task"]["_target_"].endswith(".StyleTransfer") and "cycle_transposed" not in recipe["task"]:
        return [*_former_transfer(recipe, options), *found]
    if "fast_convergence" not in recipe or not recipe["task"]["_target_"].endswith(".LanguageModel"):
        return found  # only the runs of then have this key
    said = {key(option): option.partition("=")[2] for option in [*recipe.get("overrides", []), *options]}
    former = {"max_steps": recipe["max_steps"]}
    if not said.keys() & {"level", "convergence", "fast_convergence", "experiment"} and said.get("optimizer") != "schedule_free":
        former |= {"optimizer": "adamw", "scheduler": "cosine", "technique": "[ema]", "ema_decay": 0.999}
    return [*(f"{name}={value}" for name, value in former.items() if name not in said), *found]


def _former_transfer(recipe: dict[str, Any], options: list[str]) -> list[str]:
    """Returns the defaults of style transfer from when its runs were of a fixed length: that, and no end before it."""
    said = {key(option) for option in [*recipe.get("overrides", []), *options]}
    former = {"max_steps": recipe["max_steps"]}
    if not said & {"level", "convergence", "fast_convergence", "experiment"}:
        former |= {"technique": "[ema]"}
    return [f"{name}={value}" for name, value in former.items() if name not in said]


def _former_tokens(recipe: dict[str, Any]) -> list[str]:
    """Returns what the tokens of a run lacked from before tracks of one program stayed apart and passages could be filled in."""
    tokenizer = recipe.get("tokenizer") or {}
    if not str(tokenizer.get("_target_", "")).endswith(".MidiTokTokenizer") or "parts" in tokenizer:
        return []
    return ["tokenizer.parts=1", "tokenizer.infill=false"]


def _in_use(recipe: dict[str, Any]) -> list[str]:
    """The options of an earlier run as this version has them, without those that had no effect then.

    What a stage implies today is not added: the run had what its options say.
    """
    from hydra.core.global_hydra import GlobalHydra

    found = [with_convergence(option) for option in recipe.get("overrides", [])]
    unread = {f"technique.{name}.seed" for name in WITHOUT_SEED}
    found = [option for option in found if key(option) not in unread and key(option) != "stop_at"]  # that step is reached
    if "fast_convergence" not in recipe:  # only the runs of an earlier version have this key
        return found
    loader = GlobalHydra.instance().config_loader()
    choices = {group: loader.get_group_options(group) for group in FORMERLY_OPTIONAL}
    return [o for o in found if (group := key(o)) not in choices or o.partition("=")[2] in choices[group]]


def _outdated(option: str, options: list[str]) -> bool:
    """Returns whether an earlier option belongs to a choice that is replaced, such as technique.ema.decay with technique=[]."""
    group, _, rest = key(option).partition(".")
    now = next((o.partition("=")[2] for o in options if key(o) == group), None)
    if now is None or not rest:
        return False
    return group != "technique" or rest.partition(".")[0] not in [name.strip() for name in now.strip("[]").split(",")]
