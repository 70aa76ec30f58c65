"""`zosam lottery`: lottery tickets by iterative magnitude pruning."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Self

from tyro.conf import Suppress

from zosam_jax.cli import compilation_cache, defaults, names, parsing
from zosam_jax.cli.train import (
    check_modes,
    checked,
    draw_curves,
    early_exit,
    fields,
    opening,
    print_config,
)
from zosam_jax.lottery.config import LotteryConfig, LotteryOptions
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.folder import LOTTERY_RECORD


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lottery(TrainConfig, LotteryOptions):
    """Find lottery tickets: train, prune the smallest weights, rewind, repeat.

    Every round is a run folder OUT/round-NN that `zosam report` reads; OUT/lottery.json
    is the summary of all rounds. The same command resumes. Flags override the preset.
    """

    dataset: names.Dataset = "digits"
    model: names.Model = "resnet20"
    method: Suppress[str] = "dense"
    budget: Suppress[str] = "auto"
    update_interval: Suppress[int | None] = None
    drop_fraction: Suppress[float | None] = None
    stop_fraction: Suppress[float | None] = None
    method_options: Suppress[tuple[str, ...]] = ()
    block: Suppress[int] = 1
    compact_every: Suppress[int | None] = None
    score_images: Suppress[int] = 0
    from_masks: Suppress[str] = "auto"
    gradient: names.Gradient = "zosam"
    optimizer: names.Optimizer = "sgd"
    from_: names.From = None
    preset: str = "digits"
    """Preset that sets the defaults of all flags; its sparse method is not used. \
`zosam presets` lists them."""
    config: str | None = None
    """JSON file that sets them instead, as --print-config prints it."""
    resume: str | None = None
    """Folder of rounds to go on with: their own configuration sets all flags."""
    print_config: bool = False
    """Print the resulting configuration as JSON and exit."""
    dry_run: bool = False
    """Make every check, compile, train one step and exit; write nothing."""

    def __post_init__(self):
        """Checks nothing: `search` does, when the command line is complete."""

    def search(self, typed: Collection[str]) -> LotteryConfig:
        """Returns the configuration of the search, checked.

        Args:
          typed: The fields whose flags are on the command line.

        Raises:
          RunError: A value is unknown or out of range, or a flag has no effect.
        """
        # The rounds prune, though each trains as a dense network does.
        train = checked(self, typed, is_stored=self.resume is not None, method="ticket")
        try:
            return LotteryConfig(train=train, **fields(LotteryOptions, self))
        except ValueError as error:
            raise RunError(str(error)) from error

    @classmethod
    def of(cls, given: Mapping[str, str | None]) -> Self:
        """Returns the command with the defaults that flags choose.

        Args:
          given: The values of --preset, --config and --resume, or None.
        """
        return defaults.command(cls, given, LOTTERY_RECORD, leave_out=METHOD_FIELDS)

    def execute(self, line: Sequence[str]) -> int:
        """Trains all rounds, draws their curves and returns the exit status."""
        config = self.search(parsing.typed(line, type(self)))
        check_modes(print_config=self.print_config, dry_run=self.dry_run)
        if self.print_config:
            return print_config(config)
        from zosam_jax.runs import progress

        compilation_cache.use()
        show = progress.display(config.train.log_every)
        show.message(opening(config.train))
        from zosam_jax.lottery import run_lottery, try_lottery

        if self.dry_run:
            try_lottery(config, show)
            return 0
        result = run_lottery(config, display=show, command=line)
        if result.ended_early:
            return early_exit(result.signal)
        folders = [result.folder / record["folder"] for record in result.rounds]
        draw_curves(result.folder, folders, show)
        return 0
