"""Policies: which slot of a rank's share a candidate goes to. One file each; the pure reference of their behaviour."""

from reprise.buffer.policies.base import Policy
from reprise.buffer.policies.class_balanced import ClassBalanced
from reprise.buffer.policies.fifo import Fifo
from reprise.buffer.policies.reservoir import Reservoir

POLICIES: dict[str, type[Policy]] = {"class_balanced": ClassBalanced, "reservoir": Reservoir, "fifo": Fifo}

__all__ = ["POLICIES", "ClassBalanced", "Fifo", "Policy", "Reservoir"]
