"""`python -m hf_adaptive_lr`, the same as `hf-adaptive-lr`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
