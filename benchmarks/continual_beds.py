"""What benchmarks/continual.py trains and measures: data, networks and cases of each task."""

from dataclasses import dataclass

MEMORY = 40  # pieces, of all earlier phases together; segments for style transfer
UNITS = 64  # hidden units that model=expandable adds to each block, half of those it has
SMALL = ["model.dim=64", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=2", "model.hidden_dim=128"]
SCORES = ["data=folder", "data.controls=[]", "data.infill=0", "data.max_len=256", "data.batch_size=4", "data.transpose=null"]
SHARES = ["data.split=[0.6,0.15,0.25]"]  # the smallest genre would else have two pieces to test on


@dataclass(frozen=True)
class Bed:
    """A task with its data.

    options: of every case. order: of the phases. measures: that rows keep, the main one first. cases: name -> techniques and
    their options. steps: of all phases together. needs_scores: whether the data are the user's folder of scores.
    column: whose values the phases are.
    """

    options: list[str]
    order: str
    measures: tuple[str, ...]
    cases: dict[str, list[str]]
    steps: int
    needs_scores: bool = True
    column: str = "genre"


def phases(order: str, *techniques: str, **options: object) -> list[str]:
    """The options of a run in phases."""
    own = [f"technique.{name}={value}" for name, value in options.items()]
    return ["stage=genres", f"stage.order={order}", f"technique=[{','.join(techniques)}]", *own]


def cases(order: str, *, ewc: float, samples: int = 32) -> dict[str, list[str]]:
    """The cases that every task has."""
    memory = {"size": MEMORY, "batch_size": 4}
    return {
        "fine-tuning": phases(order),
        "joint": ["technique=[forgetting]"],
        **{
            name: phases(order, name, **{f"{name}.{key}": value for key, value in memory.items()})
            for name in ("replay", "meta_replay")
        },
        "ewc": phases(order, "ewc", **{"ewc.strength": ewc, "ewc.samples": samples}),
    }


def language_model() -> Bed:
    """Genre after genre; pieces have no control tokens, so the model isn't told the genre."""
    order = "[classical,folk,jazz,pop,rock]"
    memory = {"size": MEMORY, "batch_size": 4}
    shared = cases(order, ewc=300)
    more = {
        **{name: phases(order, name, **{f"{name}.{key}": value for key, value in memory.items()}) for name in ("agem", "gem")},
        "ewc, online": phases(order, "ewc", **{"ewc.strength": 300, "ewc.samples": 32, "ewc.decay": 0.9}),
        "si": phases(order, "si", **{"si.strength": 1}),
        "packnet": phases(order, "packnet"),
    }
    grown = {
        "progressive": [*phases(order), "model=progressive"],
        "expandable": [*phases(order), "model=expandable", f"model.units={UNITS}"],
    }
    names = ("fine-tuning", "joint", "replay", "agem", "gem", "ewc", "ewc, online", "si", "packnet", "meta_replay")
    own = [*SCORES, "tokenizer.infill=false", *SMALL, "optimizer=adamw", "optimizer.lr=0.004", "scheduler=cosine", "weights=null"]
    return Bed(own, order, ("nll_per_note", "nll"), {name: (shared | more)[name] for name in names} | grown, steps=500)


def classifier() -> Bed:
    """Class after class: one head tells the genre, and each phase has the pieces of one genre alone."""
    order = "[classical,folk,jazz,pop,rock]"
    own = [
        "task=classifier",
        "heads=[genre]",
        *SCORES,
        *SHARES,
        *SMALL,
        "optimizer=adamw",
        "optimizer.lr=0.001",
        "scheduler=cosine",
    ]
    return Bed(own, order, ("genre_accuracy", "genre_nll"), cases(order, ewc=1e6), steps=250)


def classifier_domain() -> Bed:
    """The same classes in other music: one head tells the dance, and each phase has the tunes of one book."""
    own = ["task=classifier", "data=dances", "heads=[dance]", "data.max_len=256", "data.batch_size=4", "data.transpose=null"]
    own += [*SMALL, "optimizer=adamw", "optimizer.lr=0.001", "scheduler=cosine"]
    measures = ("dance_accuracy", "dance_nll")
    return Bed(own, "null", measures, cases("null", ewc=1000), steps=240, needs_scores=False, column="source")


def style_transfer() -> Bed:
    """A pair of styles after another: one generator for all directions, which is told the styles."""
    order = "[[folk,rock],[folk,jazz]]"
    own = ["task=style_transfer", "task.shared=true", "model.dim=32", "discriminator.channels=32", "data.batch_size=2"]
    own += ["optimizer.lr=0.001"]
    return Bed(own, order, ("frechet", "l1"), cases(order, ewc=1000), steps=800, needs_scores=False)


BEDS = {
    "language_model": language_model, "classifier": classifier, "classifier_domain": classifier_domain,
    "style_transfer": style_transfer,
}  # fmt: skip
