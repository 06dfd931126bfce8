"""`python -m tests.compatibility --output-dir model_cards`: run every row and write the page."""

import sys

from tests.compatibility.page import main

sys.exit(main())
