"""Packaged data and models, so that the main job runs without an account."""
