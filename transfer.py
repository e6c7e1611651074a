"""Runs `etude.run.programs.transfer` on the configuration in conf/; `python transfer.py --help` shows the options."""

import hydra
from omegaconf import DictConfig

from etude.run.command import start
from etude.run.programs import transfer


@hydra.main(version_base="1.3", config_path="conf", config_name="transfer")
def main(cfg: DictConfig) -> object:
    """Runs the program with the configuration that Hydra has composed."""
    return transfer(cfg)


if __name__ == "__main__":
    start(main)
