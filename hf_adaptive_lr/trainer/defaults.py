"""The controller of those who name none, wherever they train, and how large its updates are; free of torch."""

from __future__ import annotations

DEFAULT_CONTROLLER = "relative"
"""It finds the learning rate."""

RHO_BY_START = {"pretrained": 0.001, "scratch": 0.016}
"""Its `rho`, by whether the model comes pretrained (its head is always new).

The best means over data sets in `python -m hf_adaptive_lr.bench.studies.relative_sizes`, each as good as the best
linear schedule's there. Adapters (LoRA) took 0.016 like models from scratch.
"""

WARMUP = 0.05
"""Part of the updates over which its learning rate rises at first, in `hf-adaptive-lr finetune`."""
