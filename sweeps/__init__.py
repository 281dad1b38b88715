"""Sweeps: many runs of main.py over a space of options. ../sweep.py is the command."""
