"""The rehearsal buffer: a share of the memory on every worker, and draws from all of them.

`RehearsalBuffer` is all a training loop needs; `Increments` saves one again and again, as checkpoints do. See
docs/buffer.md.
"""

from reprise.buffer.increments import Capture, Increments, chain_of, check_saved
from reprise.buffer.rehearsal import RehearsalBuffer
from reprise.buffer.schema import Draw, Field
from reprise.buffer.snapshot import ShardFile

__all__ = ["Capture", "Draw", "Field", "Increments", "RehearsalBuffer", "ShardFile", "chain_of", "check_saved"]
