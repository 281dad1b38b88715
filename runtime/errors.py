"""The two kinds of failure that are not bugs: a user's mistake and a lost peer.

main.py turns them into one line and an exit code; everything else keeps its traceback.
"""


class UserError(ValueError):
    """A user's mistake. The message is one line that names the thing, the value and the remedy; exit code 2."""


class PeerLost(RuntimeError):  # noqa: N818
    """A collective failed because another process is gone. The message names this rank, the collective and the peer."""


class SharedUserError(UserError):
    """A user's mistake that every rank has found alike, so that only rank 0 needs to say it."""
