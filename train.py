"""Runs `etude.run.programs.train` on the configuration in conf/; `python train.py --help` shows the options."""

import sys

import hydra
from omegaconf import DictConfig

from etude.run.cli import hydra_options
from etude.run.command import start
from etude.run.programs import train


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> object:
    """Runs the program with the configuration that Hydra has composed."""
    return train(cfg)


if __name__ == "__main__":
    sys.argv[1:] = hydra_options(sys.argv[1:])
    start(main)
