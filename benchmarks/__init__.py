"""Benchmarks of the rehearsal buffer; benchmarks/buffer.py is the command. Not part of the wheel."""
