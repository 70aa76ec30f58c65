"""`zosam presets`."""

import dataclasses
import sys
from collections.abc import Sequence

from zosam_jax.runs.presets import PRESETS


@dataclasses.dataclass(frozen=True, slots=True)
class Presets:
    """List the presets: what each one trains, its cost and its evidence."""

    def execute(self, line: Sequence[str]) -> int:
        """Prints the presets and returns the exit status."""
        del line
        for name, preset in PRESETS.items():
            sys.stdout.write(
                f"zosam train --preset {name}\n"
                f"    {preset.claim}\n"
                f"    Cost: {preset.cost}\n"
                f"    Evidence: {preset.evidence}\n"
            )
        return 0
