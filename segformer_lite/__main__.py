"""`python -m segformer_lite` is the same as `segformer-lite`."""

import sys

from .cli import main

sys.exit(main())
