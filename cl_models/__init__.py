"""Continual-learning strategies, one file each. Importing this package registers every one of them in STRATEGIES.

A file put here is imported by itself: adding a strategy touches no other file (docs/strategies.md shows one).
"""

from importlib import import_module
from pkgutil import iter_modules

from reprise.cl_models.base import STRATEGIES, ContinualModel, Parts

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STRATEGIES", "ContinualModel", "Parts"]
