"""The rehearsal buffer: a share of the memory on every worker, and draws from all of them.

`RehearsalBuffer` is all a training loop needs; `Increments` saves one again and again, as checkpoints do; `keep` and
`take_up` carry one over to other ranks while a job runs. See docs/buffer.md.
"""

from reprise.buffer.increments import Capture, Increments, chain_of, check_saved
from reprise.buffer.regroup import Kept, Losses, keep, take_up
from reprise.buffer.rehearsal import RehearsalBuffer
from reprise.buffer.schema import Draw, Field
from reprise.buffer.snapshot import ShardFile

__all__ = [
    "Capture",
    "Draw",
    "Field",
    "Increments",
    "Kept",
    "Losses",
    "RehearsalBuffer",
    "ShardFile",
    "chain_of",
    "check_saved",
    "keep",
    "take_up",
]
