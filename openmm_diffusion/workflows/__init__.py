"""Whole jobs: simulate training data, train, generate and correct, run a hybrid chain."""
