"""Methods that are optimizers and not controllers, because they choose a learning rate for every weight."""

from .dsa import DSA

__all__ = ["DSA"]
