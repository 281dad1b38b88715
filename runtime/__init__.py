"""Lowest layer: processes and collectives, seeds, files, logging, timing. Imports nothing else of ours."""
