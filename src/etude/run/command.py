"""Starts the programs; reports errors and signals in one line."""

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from etude.core.called import program
from etude.run.folder import remove_if_empty

Result = TypeVar("Result")
FULL_ERROR = "HYDRA_FULL_ERROR"
_composing: set[str] = set()  # contains FULL_ERROR while `start` has set that variable for Hydra


def start(main: Callable[[], Any]) -> None:
    """Runs a program's `main` of Hydra; what Hydra refuses is told in one line with exit code 2.

    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    if os.environ.get(FULL_ERROR) == "1":
        main()
        return
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise its errors; `one_line_errors` unsets it while the program runs
    _composing.add(FULL_ERROR)
    try:
        main()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        _exit_with(_hydra_error(error))
    except OSError as error:  # errors of the program itself are reported by `one_line_errors`
        _exit_with(f"the run's folder can't be made: {error}; choose another place with outputs= or hydra.run.dir=")
    finally:
        os.environ.pop(FULL_ERROR, None)
        _composing.clear()


def _exit_with(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _hydra_error(error: BaseException) -> str:
    """Returns a message of one line for a command line from which Hydra can't compose a configuration."""
    cause: Any = error.__cause__ if error.__cause__ is not None else error
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        return (
            f"{error.override} can't be read; values with = , ( ) {{ }} [ ] : or quotes need quotes inside quotes: "
            f"\"{name}='{value}'\""
        )
    key = getattr(cause, "full_key", None)
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") and key:
        root = cause.parent_node
        while root is not None and root._get_parent() is not None:
            root = root._get_parent()
        if choices := _choices(key, list(root)):
            return f"no {key} is chosen, so it has no settings; give {key}=NAME, too: {', '.join(choices)}"
        if "max_steps" in root and (tasks := _tasks_with(key)):
            return f"{key} is a setting of task={' and task='.join(tasks)} alone; give that, too, or leave {key}= out"
        key = next((given.partition("=")[0] for given in sys.argv[1:] if given.startswith(f"{key}.")), key)  # with what follows
        return f"there is no setting {key}; {_suggestion(key, _keys(root)) or '--help lists the settings'}"
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None).partition("\nConfig search path")[0]
    if (found := re.search(r"In '(\w+)': Could not (?:find|load) '([^']+)/([^'/]+)'", text)) and (
        known := _files(*found.groups()[:2])
    ):
        near = difflib.get_close_matches(found[3], known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        return f"{found[2]}={found[3]} is unknown; {guess}there {'are' if len(known) > 1 else 'is'} {', '.join(known)}"
    lines = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))


def _choices(group: str, own: list[str]) -> list[str]:
    """Returns the choices of a group of which none is chosen; own: the keys at the top of the program's configuration."""
    from etude.run.cli import VERBS, conf_folder

    for name, keys in _settings_of_programs().items():
        if set(keys) <= set(own):
            path = conf_folder() / f"{VERBS[name].config}.yaml"
            defaults: Any = OmegaConf.select(OmegaConf.load(path), "defaults") or []
            groups = {str(each) for entry in defaults if not isinstance(entry, str) for each in entry}
            return sorted(choice.stem for choice in (path.parent / group).glob("*.yaml")) if group in groups else []
    return []


def _files(config: str, group: str) -> list[str]:
    """Returns the choices of a group of the program with this configuration."""
    from etude.run.cli import VERBS, conf_folder

    for verb in VERBS.values():
        if Path(verb.config).name == config:
            return sorted(file.stem for file in (conf_folder() / verb.config).parent.joinpath(group).glob("*.yaml"))
    return []


def _tasks_with(key: str) -> list[str]:
    """Returns the tasks of train.py whose configuration gives a setting at the top, or reads one, of this name."""
    from etude.run.cli import conf_folder

    files = sorted((conf_folder() / "task").glob("*.yaml"))
    return [file.stem for file in files if key in OmegaConf.load(file) or f"${{{key}}}" in file.read_text()]


NEAR = 0.75  # similarity, 0 to 1, of a setting that is taken for the one meant before those of other programs are looked at


def _suggestion(key: str, own: list[str]) -> str:
    """Returns the settings nearest to `key`, of this program or else of another, as a hint for messages; "" if none is near.

    own: the dotted keys of this program. A key may lack the groups before its name, such as prompt for sampling.prompt.
    """
    if near := difflib.get_close_matches(key, own, n=1, cutoff=NEAR):
        return f"did you mean {near[0]}?"
    if (last := key.rpartition(".")[2]) in own:  # such as sweep.n_trials for n_trials
        return f"did you mean {last}?"
    names: dict[str, list[str]] = {}
    for known in own:
        names.setdefault(known.rpartition(".")[2], []).append(known)
    programs = _settings_of_programs()
    if key not in names and (verbs := [verb for verb, keys in programs.items() if key in keys]):
        return f"it is an option of `{program(verbs[0])}`: leave it out here"
    here = difflib.get_close_matches(key, names, n=1)
    elsewhere = {found[0]: verb for verb, keys in reversed(programs.items()) if (found := _near(key, keys, own))}
    told = names[here[0]][:2] if here and difflib.get_close_matches(key, [*here, *elsewhere], n=1) == here else []
    if other := difflib.get_close_matches(key, elsewhere, n=1):
        told.append(f"{other[0]}, an option of `{program(elsewhere[other[0]])}`")
    told = told or difflib.get_close_matches(key, own, n=1)
    return f"did you mean {', or '.join(told)}?" if told else ""


def _near(key: str, keys: list[str], own: list[str]) -> list[str]:
    return [name for name in difflib.get_close_matches(key, keys, n=1) if name not in own]


def _settings_of_programs() -> dict[str, list[str]]:
    """Returns for each program the keys at the top of its configuration file."""
    from etude.run.cli import VERBS, conf_folder

    loaded = {name: OmegaConf.load(conf_folder() / f"{verb.config}.yaml") for name, verb in VERBS.items()}
    return {name: [str(key) for key in node if key not in ("defaults", "hydra")] for name, node in loaded.items()}


def _keys(node: Any, prefix: str = "") -> list[str]:
    """Returns all dotted keys of a configuration, without Hydra's own."""
    found = []
    for key in node if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() else ():
        if prefix or key != "hydra":
            found += [f"{prefix}{key!s}", *_keys(node._get_node(key), f"{prefix}{key!s}.")]
    return found


def one_line_errors(main: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Decorates a program: errors in the user's input end it with a message of one line and exit code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead. A signal such as SIGTERM ends the program with exit code 128 + its number. If
    a run fails before it has written any result, its folder is removed.
    """

    @wraps(main)
    def guarded(cfg: DictConfig) -> Result:
        from etude.core.stopping import Stopped, stop_on_signals

        ours = bool(_composing)
        if ours:
            os.environ.pop(FULL_ERROR, None)  # other processes that the program starts must not inherit it
        full = os.environ.get(FULL_ERROR) == "1"
        try:
            with stop_on_signals(), remove_if_empty():
                check_switches(cfg)
                return main(cfg)
        except Stopped as stopped:
            print(f"stopped by {stopped.name}; files that were written are kept", file=sys.stderr)
            sys.exit(stopped.exit_code)
        except Exception as error:
            cause: BaseException = error
            while type(cause).__name__ == "InstantiationException" and cause.__cause__ is not None:
                cause = cause.__cause__
            is_user_error = isinstance(cause, ValueError | OSError) or type(cause).__name__ == "MisconfigurationException"
            if full or not is_user_error:
                raise
            print(f"error: {cause}", file=sys.stderr)
            sys.exit(2)
        finally:
            if ours:
                os.environ[FULL_ERROR] = "1"  # in a sweep Hydra composes the next run now

    return guarded


def check_switches(cfg: DictConfig) -> None:
    """Checks that no option that is true or false by default is text, such as `no`, which would count as true.

    Nor one that is a number by default, of those outside the groups.

    Raises: ValueError with the option and its value.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import ConfigCompositionException

    if not (HydraConfig.initialized() and GlobalHydra.instance().is_initialized()):  # called by code, not by its command
        return
    said = HydraConfig.get().overrides
    given = [(option.partition("=")[0].lstrip("+~"), option) for option in said.task]
    texts = {name for name, _ in given if isinstance(OmegaConf.select(cfg, name, throw_on_missing=False), str)}
    if not texts:
        return
    rest = [option for option in said.hydra if option.partition("=")[0] == "hydra.searchpath"]
    rest += [option for name, option in given if name not in texts]
    try:
        defaults = hydra.compose(str(HydraConfig.get().job.config_name), overrides=rest)
    except ConfigCompositionException:  # without the texts the other options do not fit together, so there are no defaults
        return
    for name in sorted(texts):
        default, value = OmegaConf.select(defaults, name, throw_on_missing=False), OmegaConf.select(cfg, name)
        if isinstance(default, bool):
            raise ValueError(f"{name} is {value!r}, must be true or false")
        if isinstance(default, int | float) and "." not in name:
            raise ValueError(f"{name} is {value!r}, must be a number")


def check_types(node: DictConfig, prefix: str = "") -> None:
    """Checks that options for numbers and booleans are not text, by the type hints of each `_target_`.

    Raises: ValueError with the key, the value and the types allowed.
    """
    hints = _hints(str(node._target_)) if "_target_" in node else {}
    for key in node:
        if OmegaConf.is_missing(node, key):
            continue
        value, hint = node[key], hints.get(str(key))
        if isinstance(value, DictConfig):
            check_types(value, f"{prefix}{key!s}.")
        allowed = get_args(hint) or (hint,)
        if isinstance(value, str) and all(kind in (int, float, bool, type(None)) for kind in allowed):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed if kind)
            raise ValueError(f"{prefix}{key!s} is {value!r}, must be {names}")


def check_contract(cfg: DictConfig) -> None:
    """Raises: ValueError where a mel contract was chosen for data of scores, which have no mels."""
    chosen = (cfg.get("data") or {}).get("contract")
    if chosen is not None and "_target_" not in chosen:  # what conf/contract sets is a part of what the files of audio set
        raise ValueError(
            "contract= sets the mels of audio, and this data are scores; leave it out, or choose audio, such as "
            "task=style_transfer data=audio_folder data.root=DIR"
        )


def _hints(target: str) -> dict[str, Any]:
    made: Any = get_object(target)
    try:
        return get_type_hints(inspect.unwrap(made.__init__) if inspect.isclass(made) else made)
    except (NameError, TypeError, AttributeError):  # type hints that are imported for type checkers only
        return {}
