"""Before and after a run: learning-rate range test, and refining a schedule from past runs."""
