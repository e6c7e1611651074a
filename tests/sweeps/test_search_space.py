"""Search spaces in Hydra's grammar: what the command line and the files of conf/sweep/space mean together."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from etude.run.cli import conf_folder
from etude.run.search_space import space_files, space_of
from etude.sweeps.space import Space, all_dimensions


def space(*options: str, files: tuple[Path, ...] = ()) -> Space:
    return space_of(OverridesParser.create().parse_overrides(list(options)), files)


def test_each_form_of_the_grammar_gives_its_distribution() -> None:
    found = space(
        "a=interval(0.5,2)", "b=tag(log,interval(1e-4,1e-1))", "c=int(interval(1,8))", "d=range(0,10,2)", "e=x,y",
        "f=choice(1,2.5)", "g=[ema],[]", "h='a b',null", "fixed=3", "i=tag(log,int(interval(16,256)))", "+j=true,false",
    )  # fmt: skip
    assert {d.name: d.distribution for d in found} == {
        "a": FloatDistribution(0.5, 2.0), "b": FloatDistribution(1e-4, 1e-1, log=True), "c": IntDistribution(1, 8),
        "d": IntDistribution(0, 8, step=2), "e": CategoricalDistribution(["x", "y"]), "f": CategoricalDistribution([1, 2.5]),
        "g": CategoricalDistribution(["[ema]", "[]"]), "h": CategoricalDistribution(["a b", None]),
        "i": IntDistribution(16, 256, log=True), "j": CategoricalDistribution([True, False]),
    }  # fmt: skip
    options = {d.key: [d.option(value) for value in d.distribution.choices] for d in found if d.texts}  # type: ignore[attr-defined]
    assert options["h"] == ["h='a b'", "h=null"] and options["+j"] == ["+j=True", "+j=False"] and options["g"][0] == "g=[ema]"
    for line in options["h"]:
        assert not OverridesParser.create().parse_override(line).is_sweep_override()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("a=tag(often,interval(0,1))", "the tag often is unknown"), ("a=shuffle(x,y)", "shuffle"),
        ("a=tag(log,range(1,9))", r"tag\(log, int\(interval"), ("a=tag(log,choice(1,2))", "choices can't be logarithmic"),
        ("a=interval(3,1)", "is empty"), ("a=glob(*)", "list the choices"),
    ],
)  # fmt: skip
def test_what_a_sweep_cannot_do_is_refused(option: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        space(option)


FILE = """
optimizer:
  muon:
    optimizer.lr: tag(log, interval(0.001, 0.1))
    optimizer.momentum: 0.9, 0.95
  adamw:
    optimizer.lr: tag(log, interval(0.0001, 0.01))
  lion:
model.dim: [64, 128]
model.dropout: interval(0, 0.3)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(FILE)
    return path


def names(found: Space) -> list[str]:
    return [dimension.name for dimension in all_dimensions(found)]


def test_a_file_gives_each_choice_a_space_of_its_own(file: Path) -> None:
    found = space(files=(file,))
    assert names(found) == [
        "optimizer", "optimizer.lr@muon", "optimizer.momentum@muon", "optimizer.lr@adamw", "model.dim", "model.dropout",
    ]  # fmt: skip
    assert found[1].values() == [64, 128]


def test_the_command_line_takes_precedence_over_a_file(file: Path) -> None:
    fixed = space("optimizer=muon", "model.dim=96", files=(file,))
    assert names(fixed) == ["optimizer.lr@muon", "optimizer.momentum@muon", "model.dropout"]
    fewer = space("optimizer=adamw,soap", "model.dropout=0.1,0.2", files=(file,))
    assert names(fewer) == ["optimizer", "optimizer.lr@adamw", "model.dim", "model.dropout"]
    assert fewer[0].values() == ["adamw", "soap"] and fewer[2].values() == [0.1, 0.2]
    assert names(space("optimizer.lr=0.01", "seed=0,1", files=(file,))) == [
        "optimizer", "optimizer.momentum@muon", "model.dim", "model.dropout", "seed",
    ]  # fmt: skip


def test_bad_files_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    for text, told in (("a: [", "can't be read"), ("[1]", "must hold lines"), ("a: interval(1", "give choices")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"space={path}.*{told}") as error:
            space(files=(path,))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"space=nothing is neither one of .* nor a YAML file"):
        space_files("nothing", conf_folder())
    assert space_files([str(path)], conf_folder()) == [path]


def test_every_file_of_the_house_is_a_space() -> None:
    for path in (conf_folder() / "sweep" / "space").glob("*.yaml"):
        assert space(files=tuple(space_files(path.stem, conf_folder()))), path
