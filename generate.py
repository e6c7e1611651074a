"""Runs `etude.run.programs.generate` on the configuration in conf/generation; `python generate.py --help` shows the options."""

import hydra
from omegaconf import DictConfig

from etude.run.command import start
from etude.run.programs import generate


@hydra.main(version_base="1.3", config_path="conf/generation", config_name="generate")
def main(cfg: DictConfig) -> object:
    """Runs the program with the configuration that Hydra has composed."""
    return generate(cfg)


if __name__ == "__main__":
    start(main)
