"""Runs `etude.run.programs.train` on the configuration in conf/; `python train.py --help` shows the options."""

import sys

import hydra
from omegaconf import DictConfig

from etude.run.cli import understood
from etude.run.command import start
from etude.run.programs import train


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> object:
    """Hands Hydra's configuration over."""
    return train(cfg)


if __name__ == "__main__":
    sys.argv[1:] = understood(sys.argv[1:])
    start(main)
