"""What every stage stands on: configs, errors, files, progress, training. Knows nothing of recommenders."""
