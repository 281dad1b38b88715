"""Benchmarks: buffer.py of one rank, global_sampling.py of several, scale_model.py of many. Not part of the wheel."""
