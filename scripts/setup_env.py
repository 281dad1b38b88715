"""Entry of `make setup`: find a Python that can do it, then hand over to setup_steps.

Standard library only, and in this one file only syntax that Python 3.6 reads: it must be able to say in one line that
the Python it runs under is the wrong one. Not part of the package; called by the Makefile.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST, NEWEST = (3, 10), (3, 12)


def python_problem(version):
    """Why this Python version cannot be used, as one line; empty when it can."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ""
    return "Python {}.{} is not supported (3.10 to 3.12 are): make setup PYTHON=python3.11".format(*version[:2])


def main():
    problem = python_problem(sys.version_info)
    if problem:
        # An environment made earlier with `PYTHON=python3.11` is still good when python3 itself is not.
        inside = os.path.join(ROOT, ".venv", "bin", "python")
        chosen = "--python-was-chosen" in sys.argv
        if not chosen and os.access(inside, os.X_OK) and not sys.prefix.startswith(ROOT + os.sep):
            os.execv(inside, [inside, os.path.abspath(__file__)] + sys.argv[1:])  # noqa: RUF005
        sys.stderr.write("setup: " + problem + "\n")
        return 2
    import setup_steps

    return setup_steps.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
