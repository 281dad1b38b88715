"""Imported by processes that load for a training process, the fork server and through it its workers, and nowhere else.

Schedulers signal every process of a job when its time is over. The trainer then finishes its step, which needs them.
"""

from reprise.runtime.stop import outlive_one

outlive_one()
