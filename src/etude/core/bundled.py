"""The models that come with the package, named `bundled` wherever a checkpoint is named: a small language model of scores, and a
small model of three styles of audio. What is asked for tells which of the two is meant.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "bundled"
PATH = Path(__file__).parents[1] / "pretrained" / "scores.safetensors"
STYLES = PATH.with_name("styles.safetensors")
CARD = PATH.with_name("README.md")
STYLE_TASK = "etude.tasks.style_transfer.StyleTransfer"
MODELS = {"etude.tasks.language_model.LanguageModel": PATH, STYLE_TASK: STYLES}  # by the class of their task, the default first
ABOUT = {  # what it is for, as in "no run that ..."; what it knows
    PATH: ("generates scores", "trained on chorales, early music and folk tunes"),
    STYLES: ("restyles audio", "which knows folk, rock and jazz, trained on 180 tunes rendered with General-MIDI sounds"),
}
MOST_PIECES = 2000  # with more pieces to train on, a model of this size gains nothing by starting from another

ADDED = {"form": None}  # options whose tokens are added to those of the model, see `vocabulary_weights`


def start_of(task: str) -> Path:
    """Returns the model whose weights `weights=bundled` means for a run of this task, given as the name of its class.

    It is the one of the task's own kind; the language model for all other tasks, of which some start from its layers.
    """
    return MODELS.get(task, PATH)


def fits(recipe: Mapping[str, Any], *, num_pieces: int) -> bool:
    """Whether a run starts better from the bundled model: on a folder of few scores, with its network and tokenizer.

    recipe: the run's options. num_pieces: to train on.
    """
    if not PATH.is_file() or num_pieces > MOST_PIECES or not _target(recipe, "data", "corpus").endswith(".Folder"):
        return False
    from etude.core.weights_file import read_weights

    theirs = read_weights(PATH)["etude"]["recipe"]
    return all(_set(recipe, name) | ADDED == _set(theirs, name) | ADDED for name in ("model", "tokenizer"))


def _set(recipe: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The options of a group that are not null: an option that came later than the model is null where it changes nothing."""
    return {name: value for name, value in (recipe.get(group) or {}).items() if value is not None}


def _target(recipe: Mapping[str, Any], *names: str) -> str:
    node: Any = recipe
    for name in names:
        node = node.get(name) or {}
    return str(node.get("_target_", ""))
