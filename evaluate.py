"""Runs `etude.run.programs.evaluate` on the configuration in conf/evaluation; `python evaluate.py --help` shows the options."""

import hydra
from omegaconf import DictConfig

from etude.run.command import start
from etude.run.programs import evaluate


@hydra.main(version_base="1.3", config_path="conf/evaluation", config_name="evaluate")
def main(cfg: DictConfig) -> object:
    """Runs the program with the configuration that Hydra has composed."""
    return evaluate(cfg)


if __name__ == "__main__":
    start(main)
