"""Data sets, tasks, samplers and loaders. `build` makes a Scenario; `DATASETS` lists the data sets by name.

Importing a data set's file registers it, hence the unused imports; its libraries are imported when it is read.
"""

from reprise.scenarios import (  # noqa: F401
    aircraft,
    cars,
    cifar,
    core50,
    cub,
    digits,
    dogs,
    five_datasets,
    imagenet,
    imagenet_r,
    mnist,
    notmnist,
    ptycho,
    ptycho_synthetic,
    svhn,
    synthetic,
    tiny_imagenet,
)
from reprise.scenarios.raw import DATASETS
from reprise.scenarios.scenario import Scenario, build
from reprise.scenarios.task import ArrayDataset, Task

__all__ = ["DATASETS", "ArrayDataset", "Scenario", "Task", "build"]
