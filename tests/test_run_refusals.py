"""What is told in one line before anything is trained: parts that do not fit, what can't be sampled, what is missing."""

import sys
from pathlib import Path

import pytest

from tests.songs import write_songs
from tests.test_run import TINY, call, fails


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs."""
    home = tmp_path_factory.mktemp("home")
    write_songs(home / "songs")
    return home


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["data=chorales", "tokenizer=remi"], "model=tiny"),
        (["data=chorales", "tokenizer.bar_tokens=true"], "bar_tokens=false"),
        (["data=chorales", "model.dim=32"], "model.dim=64"),
        (["data=chorales", "technique=[]", "+technique.ema.decay=0.5"], "technique=[ema"),
        (["data=chorales", "technique.ema=null"], "write ~technique.ema"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: str
) -> None:
    songs = ["data.corpus._target_=etude.data.scores.corpora.Folder", f"+data.corpus.root={home / 'songs'}"]
    line = fails(capsys, "train", tmp_path / "run", *options, *songs, f"cache_dir={home / 'cache'}", "~sampling")
    assert expected in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["objective=simclr"], "objective= names a network for task=representation"),
        (["discriminator=patch"], "discriminator= names a network for task=style_transfer"),
        (["task=representation", "data=audio_folder"], "this task reads scores"),
        (["task=representation", "model=grid"], "GridTransformer has no setting causal"),
        (
            ["task=classifier", "heads=[genre]", "sampling=default"],
            "samples of another kind of task than Classifier; leave it out",
        ),
        (["task=language_model", "sampling=transfers"], "samples of another kind of task than LanguageModel; leave it out"),
        (["task=vae", "tokenizer=satb"], "SatbGrid has no setting infill"),
    ],
)
def test_what_a_task_does_not_take_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: str
) -> None:
    songs = ["data=folder", f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}"]
    options = options if any(o.startswith("sampling=") for o in options) else [*options, "~sampling"]
    assert expected in fails(capsys, "train", tmp_path / "run", *songs[any(o.startswith("data=") for o in options) :], *options)


def test_what_tokens_change_is_told_once_training_starts(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A run that is refused has no folder, in which a list of the changes could be."""
    options = [
        "model=grid",
        "tokenizer=satb",
        "model.dim=32",
        "model.num_layers=1",
        "model.num_heads=2",
        "~sampling",
        "max_steps=1",
    ]
    songs = [
        "data=folder",
        f"data.root={home / 'songs'}",
        f"cache_dir={home / 'cache'}",
        "technique=[]",
        "trainer.num_sanity_val_steps=0",
    ]
    call("train", tmp_path / "whole", *options, *songs)
    assert "lists them" in capsys.readouterr().err and (tmp_path / "whole" / "changes.tsv").is_file()
    with pytest.raises(SystemExit):
        call("train", tmp_path / "refused", *options, *songs, "stage=genres", "stage.order=[classical,polka]")
    told = capsys.readouterr().err
    assert "genre 'polka' has no training piece" in told and "lists them" not in told


def test_what_renders_is_looked_for_before_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nothing = ["data=folder", f"data.root={tmp_path / 'nowhere'}"]
    for wish, told in (
        ("synthesizer=timidity", "synthesizer=timidity is not one of"),
        ("soundfont=no.sf2", "soundfont is no.sf2"),
    ):
        assert told in fails(capsys, "train", tmp_path / "run", *nothing, f"sampling.{wish}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["sampling.genre=polka"], "genre 'polka' is unknown to this tokenizer; valid: classical, folk"),
        (["data.controls=[key]", "sampling.metre=4/4"], "metre=4/4: this model was trained without that label"),
        (["sampling.prompt=nowhere.mid"], "nowhere.mid"),
    ],
)
def test_what_samples_ask_for_is_checked_before_training(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], told: str
) -> None:
    places = [f"data.root={home / 'songs'}", f"cache_dir={home / 'cache'}"]
    assert told in fails(capsys, "train", tmp_path / "run", *TINY, *places, *options)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_logger_that_is_not_installed_is_told_with_its_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = fails(capsys, "train", tmp_path / "run", "data=folder", f"data.root={tmp_path}", "logger=[csv,tensorboard]")
    assert line.startswith("error: logger=tensorboard needs") and line.endswith("pip install 'etude[tensorboard]'")


@pytest.mark.parametrize(
    "wishes",
    [["stage=polish", "weights=nowhere"], ["technique=[distillation]", "technique.distillation.teacher=nowhere"]],
)
def test_a_missing_checkpoint_is_told_by_the_key_that_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wishes: list[str]
) -> None:
    line = fails(capsys, "train", tmp_path / "run", "data=folder", f"data.root={tmp_path}", *wishes)
    assert f"error: {wishes[1]}: there is no such file" in line and f"or {wishes[1].partition('=')[0]}=last" in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["task=few_shot", "data.infill=0.5"], "data.infill=0.5 would hide passages that a language model learns to fill in"),
        (["task=representation", "data.infill=0.5"], "Representation fills none in: leave it out"),
        (["task=classifier", "data.infill=1"], "Classifier fills none in: leave it out"),
        (["task=few_shot", "data.control_dropout=0.5"], "data.control_dropout=0.5 leaves out control tokens, and there are none"),
        (["task=few_shot", "data.ways=1"], "data.ways=1: task=few_shot tells classes apart"),
        (["objective=simclr"], "objective= names a network for task=representation"),
        (["task=classifier", "heads=[genre]", "sharing=soft"], "sharing=soft is of several heads, and there is one, genre"),
        (["optimizer.lr=-1"], "the optimizer refuses one of the optimizer.* settings: learning rate must be positive. (-1 > 0)"),
        (["optimizer=adamw", "optimizer.betas=[2,0.9]"], "Invalid beta parameter at index 0: 2; set another"),
        (["task=few_shot", "algorithm=maml", "algorithm.steps=0"], "algorithm.steps=0 and test_steps=None at least 1"),
    ],
)
def test_what_a_task_cannot_learn_from_is_refused_before_data_are_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], told: str
) -> None:
    nothing = [] if "task=few_shot" in options else ["data=folder", f"data.root={tmp_path / 'nowhere'}"]
    assert told in fails(capsys, "train", tmp_path / "run", *nothing, *options, f"cache_dir={tmp_path / 'cache'}")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("option", ["ckpt=bundled", "num_samples=3", "temperature=0.5", "task=classifier", "+data.root=songs"])
def test_what_the_evaluation_of_files_does_not_read_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    line = fails(capsys, "evaluate", tmp_path / "run", f"files={home / 'songs'}", option)
    assert line == f"error: {option} does nothing beside files=; leave it out"


def test_a_folder_without_scores_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = fails(capsys, "evaluate", tmp_path / "run", f"files={tmp_path / 'empty'}")
    assert line.endswith("files") and "there is no score in it; give a folder with .abc, " in line
