"""The rehearsal buffer: `RehearsalBuffer`, the `Field`s of a sample, the `Draw`s it hands out. See docs/buffer.md."""

from reprise.buffer.rehearsal import RehearsalBuffer
from reprise.buffer.schema import Draw, Field

__all__ = ["Draw", "Field", "RehearsalBuffer"]
