"""Measuring one live run: what the controller's `needs` name, and nothing else."""
