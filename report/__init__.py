"""What a run tells its user: metric formulas, sinks, the run folder, progress, pictures, final tables. Rank 0 only."""
