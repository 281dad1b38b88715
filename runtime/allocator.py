"""The C library's allocator, told to keep what is freed. Not for GPU memory, which torch itself keeps.

A training step frees its activations and gradients, and the next one asks for as much again. glibc gives memory at the
end of its heap back to the system each time, and every page of it then has to be faulted in and zeroed anew.
"""

import ctypes
import os
from contextlib import suppress

# mallopt(3). Of more than the largest threshold that glibc takes, 32 MiB, each piece is mapped and unmapped as before.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = 2**31 - 1, 32 << 20


def keep_freed_memory() -> None:
    """For the rest of this process. Does nothing where the user has tuned the allocator, or it is not glibc's."""
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
