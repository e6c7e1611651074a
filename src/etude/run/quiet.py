"""Hides messages of Lightning that do not concern users of Etude."""


def quiet_lightning() -> None:
    """Hides Lightning's messages and the warnings that do not concern users of Etude."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.11
        r"Experiment logs directory .* exists and is not empty",  # metrics.csv belongs in the run's folder
        r".*does not have many workers which may be a bottleneck",  # the loader was measured: it takes less than 3 % of the time
        r"The number of training batches .* is smaller than the logging interval",  # small data
        r"Total length of .* across ranks is zero",  # BestCheckpoint has a better message
        r"Checkpoint directory .* exists and is not empty",  # LastCheckpoint shares it with ModelCheckpoint
    ):
        warnings.filterwarnings("ignore", message)
