"""How the programs begin and end: errors and signals told in one line."""

import difflib
import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, get_args, get_type_hints

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from etude.run.folder import no_empty_folder

Result = TypeVar("Result")
FULL_ERROR = "HYDRA_FULL_ERROR"
_composing: set[str] = set()  # holds FULL_ERROR where `start` has set it for Hydra


def start(main: Callable[[], Any]) -> None:
    """Runs a program's `main` of Hydra; what Hydra refuses is told in one line with exit code 2.

    HYDRA_FULL_ERROR=1 shows tracebacks instead.
    """
    if os.environ.get(FULL_ERROR) == "1":
        main()
        return
    os.environ[FULL_ERROR] = "1"  # so that Hydra hands its errors on; `one_line_errors` takes it back while the program runs
    _composing.add(FULL_ERROR)
    try:
        main()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        _tell(_hydra_error(error))
    except OSError as error:  # the program's own are told by `one_line_errors`
        _tell(f"the run's folder can't be made: {error}; choose another place with outputs= or hydra.run.dir=")
    finally:
        os.environ.pop(FULL_ERROR, None)
        _composing.clear()


def _tell(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _hydra_error(error: BaseException) -> str:
    """One line for a command line that Hydra can't compose."""
    cause: Any = error.__cause__ if error.__cause__ is not None else error
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        return (
            f"{error.override} can't be read; values with = , ( ) {{ }} [ ] : or quotes want quotes inside quotes: "
            f"\"{name}='{value}'\""
        )
    key = getattr(cause, "full_key", None)
    if type(cause).__name__ in ("ConfigAttributeError", "ConfigKeyError") and key:
        root = cause.parent_node
        while root is not None and root._get_parent() is not None:
            root = root._get_parent()
        near = difflib.get_close_matches(key, _keys(root), n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the settings"
        return f"there is no setting {key}; {hint}"
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None).partition("\nConfig search path")[0]
    lines = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a configuration with dots, but Hydra's own."""
    found = []
    for key in node if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() else ():
        if prefix or key != "hydra":
            found += [f"{prefix}{key!s}", *_keys(node._get_node(key), f"{prefix}{key!s}.")]
    return found


def one_line_errors(main: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Ends the program with one line where the user's input is at fault; HYDRA_FULL_ERROR=1 shows the traceback.

    A signal such as SIGTERM ends it with exit code 128 + its number. Where the run failed before it had anything to keep, the
    folder that was made for it is removed.
    """

    @wraps(main)
    def guarded(cfg: DictConfig) -> Result:
        from etude.core.stopping import Stopped, stop_on_signals

        ours = bool(_composing)
        if ours:
            os.environ.pop(FULL_ERROR, None)  # not for what the program starts
        full = os.environ.get(FULL_ERROR) == "1"
        try:
            with stop_on_signals(), no_empty_folder():
                return main(cfg)
        except Stopped as stopped:
            print(f"stopped by {stopped.name}; what was written stays", file=sys.stderr)
            sys.exit(stopped.exit_code)
        except Exception as error:
            cause: BaseException = error
            while type(cause).__name__ == "InstantiationException" and cause.__cause__ is not None:
                cause = cause.__cause__
            told = isinstance(cause, ValueError | OSError) or type(cause).__name__ == "MisconfigurationException"
            if full or not told:
                raise
            print(f"error: {cause}", file=sys.stderr)
            sys.exit(2)
        finally:
            if ours:
                os.environ[FULL_ERROR] = "1"  # a sweep composes its next run

    return guarded


def check_types(node: DictConfig, prefix: str = "") -> None:
    """Refuses words where what a `_target_` names takes numbers or true and false.

    Raises: ValueError with the key, the value and what it must be.
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


def _hints(target: str) -> dict[str, Any]:
    made: Any = get_object(target)
    try:
        return get_type_hints(inspect.unwrap(made.__init__) if inspect.isclass(made) else made)
    except (NameError, TypeError, AttributeError):  # names that are known to type checkers alone
        return {}
