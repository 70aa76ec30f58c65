"""`python -m zosam_jax`."""

import sys

from zosam_jax.cli.main import main

sys.exit(main())
