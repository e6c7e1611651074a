"""Runs `etude.run.train` on the configuration in conf/; `python train.py --help` shows the options."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from etude.run import train, understand_command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> object:
    """Hands Hydra's configuration over."""
    return train(cfg)


if __name__ == "__main__":
    understand_command_line(Path(__file__).with_name("conf"))
    main()
