"""Examples of a batch: counted, chosen and joined along the axis that the task declares."""

import pytest
import torch

from etude.core.batch import join, num_examples, take
from etude.core.task import Task
from etude.tasks.language_model import LanguageModel
from etude.tasks.style_transfer import StyleTransfer
from etude.tasks.vocoder import Vocoder


class Axis:
    """Stands for a task where its axis alone matters."""

    def __init__(self, example_axis: int | None) -> None:
        self.example_axis = example_axis


ROWS, MELS = Axis(LanguageModel.example_axis), Axis(StyleTransfer.example_axis)


def rows(count: int = 4, length: int = 5) -> dict[str, torch.Tensor]:
    tokens = torch.arange(count * length).view(count, length)
    return {"tokens": tokens, "documents": torch.zeros_like(tokens).int(), "embeddings": tokens[..., None].float()}


def mels(count: int = 3) -> dict[str, torch.Tensor]:
    mel = torch.arange(2 * count * 4 * 6).view(2, count, 4, 6).float()
    return {"mel": mel, "samples": mel.flatten(2), "label_genre": torch.arange(2 * count).view(2, count)}


def test_the_tasks_declare_their_axes() -> None:
    assert (LanguageModel.example_axis, StyleTransfer.example_axis, Vocoder.example_axis) == (0, 1, 1)
    assert num_examples(rows(4), of=ROWS) == 4
    assert num_examples(mels(3), of=MELS) == 3


@pytest.mark.parametrize(("batch", "of"), [(rows(), ROWS), (mels(), MELS)], ids=["rows", "mels"])
def test_taking_apart_and_joining_gives_the_batch_back(batch: dict[str, torch.Tensor], of: Axis) -> None:
    again = join([take(batch, [i], of=of) for i in range(num_examples(batch, of=of))], of=of)
    assert again.keys() == batch.keys()
    assert all(torch.equal(again[name], batch[name]) and again[name].dtype == batch[name].dtype for name in batch)


def test_taken_examples_are_the_chosen_ones_in_their_order() -> None:
    batch, chosen = mels(), take(mels(), torch.tensor([2, 0, 2]), of=MELS)
    assert torch.equal(chosen["mel"], batch["mel"][:, [2, 0, 2]])
    assert torch.equal(chosen["label_genre"], torch.tensor([[2, 0, 2], [5, 3, 5]]))
    assert take(rows(), [], of=ROWS)["tokens"].shape == (0, 5)


def test_gradients_pass_through() -> None:
    batch = rows(2)
    batch["embeddings"] = batch["embeddings"].requires_grad_()
    join([take(batch, [1, 1], of=ROWS), batch], of=ROWS)["embeddings"].sum().backward()
    assert torch.equal(batch["embeddings"].grad, torch.tensor([1.0, 3.0]).view(2, 1, 1).expand(2, 5, 1))


def test_a_task_that_declares_no_axis_is_named() -> None:
    class Silent(Task):
        """Declares nothing."""

    silent = Silent(optimizer=lambda groups: torch.optim.SGD(groups))
    for act in (lambda: num_examples(rows(), of=silent), lambda: take(rows(), [0], of=silent), lambda: join([rows()], of=silent)):
        with pytest.raises(ValueError, match=r"Silent does not say which axis.*example_axis"):
            act()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"different numbers of examples on axis 0.*'extra': 3"):
        num_examples({**rows(4), "extra": torch.zeros(3)}, of=ROWS)
    with pytest.raises(ValueError, match=r"genre of the batch has the shape \[3\], and no axis 1"):
        num_examples({**mels(3), "genre": torch.zeros(3)}, of=MELS)
    with pytest.raises(ValueError, match="name of the batch is a str"):
        num_examples({**rows(), "name": "x"}, of=ROWS)
    with pytest.raises(IndexError, match=r"indices=\[4\] must lie in \[0, 4\)"):
        take(rows(4), [4], of=ROWS)
    with pytest.raises(IndexError, match=r"indices=\[-1\]"):
        take(rows(4), [-1], of=ROWS)
    with pytest.raises(ValueError, match="not all of them have embeddings"):
        join([rows(), {name: value for name, value in rows().items() if name != "embeddings"}], of=ROWS)
    with pytest.raises(ValueError, match=r"tokens has the shapes \[\[4, 5\], \[4, 6\]\]"):
        join([rows(), rows(length=6)], of=ROWS)
    with pytest.raises(ValueError, match="no batch to join"):
        join([], of=ROWS)
    with pytest.raises(ValueError, match=r"tokens is torch.int64 in one, torch.float32 in another"):
        join([rows(), {name: value.float() for name, value in rows().items()}], of=ROWS)
