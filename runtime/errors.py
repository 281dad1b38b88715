"""The kinds of ends that are not bugs: a user's mistake, a lost peer, other ranks that want to join.

main.py turns them into one line and an exit code; everything else keeps its traceback.
"""


class UserError(ValueError):
    """A user's mistake. The message is one line that names the thing, the value and the remedy; exit code 2."""


class PeerLost(RuntimeError):  # noqa: N818
    """A collective failed because another process is gone. The message names this rank, the collective and the peer."""


class RanksChanged(Exception):  # noqa: N818
    """Other ranks wait to join this job, or some are to leave it. Raised on all ranks after the same step."""


class SharedUserError(UserError):
    """A user's mistake that every rank has found alike, so that only rank 0 needs to say it."""
