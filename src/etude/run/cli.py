"""The command `etude VERB ...`; each entry of VERBS is a verb. Slow imports come only after the verb is known."""

import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

from etude.core.called import program


class Verb(NamedTuple):
    """A verb of the command: its description, its function, and the configuration that Hydra composes for it."""

    description: str
    function: str  # module:name, called with the composed configuration
    config: str  # a file below conf/, without its suffix


VERBS = {
    "train": Verb("trains a model", "etude.run.programs:train", "train"),
    "generate": Verb("samples music from a checkpoint", "etude.run.programs:generate", "generation/generate"),
    "evaluate": Verb("measures a checkpoint, or a folder of scores", "etude.run.programs:evaluate", "evaluation/evaluate"),
    "transfer": Verb("restyles audio files", "etude.run.programs:transfer", "transfer"),
    "grade": Verb("grades audio files: defects, their places, quality", "etude.run.grading:grade", "grade"),
    "synthesise": Verb("plays a score with a trained model", "etude.run.performing:synthesise", "synthesise"),
    "perform": Verb("generates, plays and restyles in one command", "etude.run.performing:perform", "perform"),
    "reproduce": Verb("repeats a run from its folder and compares", "etude.run.reproduce:reproduce", "reproduce"),
    "compare-hashes": Verb("finds the first step and tensor in which two runs differ", "etude.run.reproduce:hashes", "hashes"),
    "export": Verb("writes a checkpoint's weights to a safetensors file", "etude.run.export:export", "export/export"),
    "compare": Verb("puts runs side by side", "etude.run.comparing:compare", "compare"),
    "live": Verb("answers phrases that you play, note by note", "etude.studio.live:live", "live"),
    "listen": Verb("asks listeners, blind, which music is real", "etude.studio.listening:listen", "listen"),
}


def main() -> None:
    """Runs the verb that the command line names, with Hydra's options after it."""
    name, options = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("--help", "-h"):
        print(usage())
    elif name == "--version":
        from importlib.metadata import version

        print(f"etude {version('etude')}")
    elif name not in VERBS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(2)
    else:
        run(name, options)


def usage() -> str:
    """Returns the text of `etude --help`: the verbs with their descriptions."""
    width = max(map(len, VERBS))
    verbs = [f"  {name:{width}}  {verb.description}" for name, verb in VERBS.items()]
    return "\n".join(
        ["Usage: etude VERB [group=choice ...] [key=value ...]", "", *verbs, "", "etude VERB --help lists its options."]
    )


def unknown(name: str) -> str:
    """Returns the line that refuses a verb: the nearest one, and all that there are."""
    from difflib import get_close_matches

    near = get_close_matches(name, VERBS, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"etude has no verb {name!r}; {guess}the verbs are {', '.join(VERBS)}"


def conf_folder() -> Path:
    """Returns the folder of the configuration files: in the clone, or inside the installed package."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def hydra_options(options: list[str]) -> list[str]:
    """Returns the options of train.py as Hydra options; ends the program with an error of one line if that is not possible."""
    presets = sorted(path.stem for path in (conf_folder() / "genre").glob("*.yaml"))
    sweeps = [o for o in options if o.startswith("sweep=") and o not in ("sweep=null", "sweep=[]", "sweep=")]
    if sweeps and not any(o.startswith("-") for o in options):
        options = ["--multirun", *options]
    try:
        return list(importlib.import_module("etude.run.recipes").spelled_out(options, presets))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(name: str, options: list[str]) -> None:
    """Composes the verb's configuration from `options`, as its script at the top of the repository does, and runs it."""
    import hydra
    from omegaconf import DictConfig

    from etude.run.command import start

    verb = VERBS[name]
    config = conf_folder() / verb.config
    module, _, function = verb.function.partition(":")
    call = getattr(importlib.import_module(module), function)
    if name == "train":
        options = hydra_options(options)
    if "--help" in options or "-h" in options:
        options = [f"hydra.help.app_name={program(name)}", *options]
    command = sys.argv

    def task(cfg: DictConfig) -> Any:
        sys.argv = command  # Lightning starts other ranks with this command line
        return call(cfg)

    task.__module__ = name  # Hydra uses it as the name of the job
    sys.argv = [command[0], *options]  # Hydra reads the options from here
    start(hydra.main(version_base="1.3", config_path=str(config.parent), config_name=config.name)(task))


if __name__ == "__main__":
    main()
