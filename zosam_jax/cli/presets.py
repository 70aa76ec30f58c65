"""`zosam presets`."""

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence

from zosam_jax.cli import terminal
from zosam_jax.runs.presets import PRESETS


@dataclasses.dataclass(frozen=True, slots=True)
class Presets:
    """List the presets: what each one trains, its cost and its evidence."""

    def execute(self, line: Sequence[str]) -> int:
        """Prints the presets and returns the exit status."""
        del line
        for name, preset in PRESETS.items():
            cost, evidence = f"Cost: {preset.cost}", f"Evidence: {preset.evidence}"
            paragraphs = map(_wrapped, (preset.claim, cost, evidence))
            lines = [f"zosam train --preset {name}", *paragraphs]
            terminal.write("\n".join(lines) + "\n\n")
        return 0


def _wrapped(text: str) -> str:
    """Returns an indented paragraph as wide as the terminal, at most 100 columns."""
    width = min(shutil.get_terminal_size().columns, 100)
    indent = "    "
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
