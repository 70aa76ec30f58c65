"""`zosam lottery`: lottery tickets by iterative magnitude pruning."""

import dataclasses
from collections.abc import Sequence
from typing import Self

from tyro.conf import Suppress

from zosam_jax.cli import names
from zosam_jax.cli.train import absolute, draw_curves, fields, print_config
from zosam_jax.lottery.config import LotteryConfig, LotteryOptions
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig
from zosam_jax.runs.presets import Preset
from zosam_jax.train import choices


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lottery(TrainConfig, LotteryOptions):
    """Find lottery tickets: train, prune the smallest weights, rewind, repeat.

    Every round is a run folder OUT/round-NN that `zosam report` reads; OUT/lottery.json
    is the summary of all rounds. The same command resumes. Flags override the preset.
    """

    dataset: names.Dataset = "digits"
    method: Suppress[str] = "dense"
    budget: Suppress[str] = "auto"
    update_interval: Suppress[int | None] = None
    drop_fraction: Suppress[float | None] = None
    stop_fraction: Suppress[float | None] = None
    method_options: Suppress[tuple[str, ...]] = ()
    gradient: names.Gradient = "zosam"
    preset: str = "digits"
    """Preset that sets the defaults of all flags; its sparse method is not used. \
`zosam presets` lists them."""
    print_config: bool = False
    """Print the resulting configuration as JSON and exit."""

    def __post_init__(self):
        TrainConfig.__post_init__(self)
        choices.check(self)
        self.config()

    def config(self) -> LotteryConfig:
        """Returns the configuration of the search."""
        train = TrainConfig(**absolute(fields(TrainConfig, self)))
        return LotteryConfig(train=train, **fields(LotteryOptions, self))

    @classmethod
    def of(cls, name: str, preset: Preset) -> Self:
        """Returns the command with the defaults of a preset."""
        values = fields(TrainConfig, preset.config)
        shared = {k: v for k, v in values.items() if k not in METHOD_FIELDS}
        return cls(**shared, preset=name)

    def execute(self, line: Sequence[str]) -> int:
        """Trains all rounds, draws their curves and returns the exit status."""
        config = self.config()
        if self.print_config:
            return print_config(config)
        from zosam_jax.lottery import run_lottery
        from zosam_jax.runs import progress

        show = progress.display(self.log_every)
        result = run_lottery(config, display=show, command=line)
        if result.status == "interrupted":
            return 128 + (result.signal or 0)
        rounds = [result.folder / record["folder"] for record in result.rounds]
        draw_curves(result.folder, rounds, show)
        return 0
