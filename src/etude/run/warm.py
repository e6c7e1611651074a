"""Importing this module loads what a training needs, so that processes forked from the importing one begin at once.

It composes the default configuration, too: that loads Hydra's parser and plugins. It computes nothing and starts no thread.
"""

import importlib

import pytorch_lightning
import torch
from hydra import compose, initialize_config_dir

from etude.run import cli, programs
from etude.sweeps import callback

LOADED = (pytorch_lightning, torch, programs, callback)

with initialize_config_dir(str(cli.conf_folder().absolute()), version_base="1.3"):
    compose("train", overrides=["seed=0"])
for _name in ("hydra.main", "hydra._internal.hydra", "etude.report.progress", "etude.report.dashboards"):
    importlib.import_module(_name)
