"""`python -m hf_adaptive_lr.cli`, the same as `hf-adaptive-lr`."""

import sys

from . import main

sys.exit(main())
