"""The sparse-training methods, a file for each algorithm."""
