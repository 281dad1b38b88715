"""Continual-learning strategies, one file each. Importing this package registers them all in STRATEGIES."""

from reprise.cl_models.base import STRATEGIES, ContinualModel, Parts
from reprise.cl_models.er import Er
from reprise.cl_models.vanilla import Vanilla

__all__ = ["STRATEGIES", "ContinualModel", "Er", "Parts", "Vanilla"]
