"""Training: options, the loop over tasks, the optimisation step, evaluation, optimiser regimes, checkpoints."""
