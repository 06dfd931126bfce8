"""The controller of those who name none, wherever they train; free of torch."""

from __future__ import annotations

DEFAULT_CONTROLLER = "universal"
"""It finds the learning rate."""
