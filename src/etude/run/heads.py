"""The option heads=[...]: the columns of labels that a classifier learns, in one group or several."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from etude.run.recipes import key

EXAMPLE = "give column names, heads=[genre,key], or groups of them, heads=[[genre,composer],[key,metre]]"


def set_targets(cfg: DictConfig, overrides: Iterable[str]) -> None:
    """Sets data.targets, which the data read, to the columns of `heads`; leaves them where that is null or no option.

    overrides: the options of the command line.

    Raises: ValueError for heads that are no names or groups of names, a name that comes twice, another data.targets, or a
        single head that would have to share its network with others.
    """
    heads: Any = cfg.get("heads")
    if heads is not None:
        cfg.data.targets = _names(heads, cfg, overrides)
    targets, sharing = (cfg.data or {}).get("targets") or [], cfg.get("sharing")
    if len(targets) == 1 and sharing in ("soft", "cross_stitch"):
        raise ValueError(
            f"sharing={sharing} is of several heads, and there is one, {targets[0]}: name more in heads=[...], or leave it out"
        )


def _names(heads: Any, cfg: DictConfig, overrides: Iterable[str]) -> list[str]:
    heads = OmegaConf.to_container(heads) if OmegaConf.is_list(heads) else heads
    groups = heads if isinstance(heads, list) and heads and all(isinstance(group, list) for group in heads) else [heads]
    if not all(isinstance(group, list) and group and all(isinstance(name, str) for name in group) for group in groups):
        raise ValueError(f"heads={heads} can't be read; {EXAMPLE}")
    names = [name for group in groups for name in group]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"heads={heads} names {double} twice; name each column once")
    if any(key(option) == "data.targets" for option in overrides) and list(cfg.data.targets) != names:
        raise ValueError(f"heads={heads} and data.targets={list(cfg.data.targets)} differ; leave data.targets out")
    return names
