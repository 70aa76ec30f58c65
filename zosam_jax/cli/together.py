"""The process of `zosam sweep --together` that trains several runs in one program.

python -m zosam_jax.cli.together CONFIG.json CONFIG.json ...
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from zosam_jax.cli import compilation_cache, parsing, terminal
from zosam_jax.cli.train import Train, draw_curves, early_exit
from zosam_jax.data import DatasetError
from zosam_jax.runs import progress
from zosam_jax.runs.config import from_record
from zosam_jax.runs.errors import RunError
from zosam_jax.train import together
from zosam_jax.train.sweep import APART


def main(paths: Sequence[str]) -> int:
    """Trains the runs of configuration files, and returns the exit status.

    The status is 0 if all runs are finished, 1 if some failed, 2 after an error that
    the message explains, 128 plus the number of a signal that ended all, and
    `sweep.APART` if the runs cannot train in one program.

    Args:
      paths: The files. The configurations differ in seed, radius and folder alone.
    """
    terminal.escape_unprintable()
    try:
        configs = [from_record(json.loads(Path(path).read_text())) for path in paths]
        compilation_cache.use()
        show = progress.display(configs[0].log_every)
        line = ["python", "-m", "zosam_jax.cli.together", *paths]
        ended = together.train(configs, display=show, command=line)
    except together.Apart as error:
        _say(str(error))
        return APART
    except (RunError, DatasetError) as error:
        _say(str(error))
        return 2
    for name, reason in ended.failures.items():
        _say(f"{name}: {reason}")
    if not ended.is_complete:
        return early_exit(ended.signal)
    for config in configs:
        if config.folder.name not in ended.failures:
            draw_curves(config.folder, [config.folder], show)
    return 1 if ended.failures else 0


def _say(text: str) -> None:
    fields = set(parsing.flags(Train).values())
    sys.stderr.write(f"error: {terminal.as_typed(text, fields)}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
