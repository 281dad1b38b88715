"""Names to objects: the registries of backbones, data sets and strategies, and the nearest-name hint of error messages.

Adding a method means one file with `@REGISTRY.register("Name")`; main.py looks names up here and nowhere else.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from reprise.runtime.errors import UserError

T = TypeVar("T")


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the choice nearest to `word`, or "" when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f", did you mean '{by_lower[match[0]]}'?" if match else ""


class Registry(Generic[T]):
    """A named table of objects. `kind` ("backbone", "data set", ...) is what error messages call its entries."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`; a second object of the same name is our own bug."""
        assert name not in self._entries, f"{self.kind} '{name}' is registered twice"

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry; raises UserError with the nearest name and the whole list on a miss."""
        if name not in self._entries:
            hint = nearest(name, self._entries)
            raise UserError(f"unknown {self.kind} '{name}'{hint or ';'} choose one of: {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)
