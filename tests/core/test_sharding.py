"""Which strategies split the model over devices."""

from typing import Any

import pytest
from pytorch_lightning import strategies

from etude.core.sharding import SHARDING, is_sharded
from tests.toys import trainer


@pytest.mark.parametrize("name", SHARDING)
def test_strategies_that_shard_are_known_by_the_names_that_lightning_gives_them(name: str) -> None:
    made: Any = type("Trainer", (), {"strategy": object.__new__(getattr(strategies, name))})
    assert is_sharded(made)


def test_a_single_device_and_ddp_have_the_whole_model(tmp_path: Any) -> None:
    made: Any = type("Trainer", (), {"strategy": object.__new__(strategies.DDPStrategy)})
    assert not is_sharded(trainer(tmp_path, max_steps=1)) and not is_sharded(made)
