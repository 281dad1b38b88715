"""Reprise: continual learning with a distributed rehearsal buffer.

The checkout root is the package `reprise`; everything is imported under that one name. This file holds the version and
nothing else, so that `import reprise` costs nothing; the parts are imported by name (`from reprise.buffer import ...`).
"""

__version__ = "0.1.0.dev0"
