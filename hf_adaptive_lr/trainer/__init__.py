"""Integration with transformers' Trainer: subclass, arguments, callbacks."""
