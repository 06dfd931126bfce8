"""Packaged data and models, so that `hf-adaptive-lr finetune` runs without an account."""
