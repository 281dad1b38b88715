def version() -> str:
    """One line: interface version, C++ standard and compiler of this build."""
