"""`python -m zosam_jax`."""

import sys

from zosam_jax.cli import main

sys.exit(main())
