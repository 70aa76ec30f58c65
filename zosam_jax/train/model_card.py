"""What an exported file says of its network, and the model card beside it."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax._types import Masks, Params
from zosam_jax.runs import environment, schema
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import explained
from zosam_jax.runs.files import JSON


class About(NamedTuple):
    """What an exported file says of its network.

    Attributes:
      config: The configuration that names the model.
      facts: What the network knows of its data set.
      step: The step of the checkpoint.
      figures: The figures of the run's summary in `FIGURES`; {} if it was unfinished.
    """

    config: TrainConfig
    facts: DatasetFacts
    step: int
    figures: JSON

    def record(self) -> JSON:
        """Returns it as the file has it."""
        # Folders of this machine say nothing to others.
        config = self.config.record()
        config = {k: v for k, v in config.items() if k not in ("out", "from_")}
        return {
            "config": config,
            "dataset": self.facts.record(),
            "step": self.step,
            "figures": self.figures,
            "versions": environment.versions(),
        }


FIGURES = {
    "status": schema.one_of("finished", "stopped"),
    "steps": schema.WHOLE,
    "test_accuracy": schema.AT_MOST_ONE,
    "test_loss": schema.NUMBER,
    "sparsity": schema.SHARE,
    "parameters_live": schema.WHOLE,
}
"""Figures of a run's summary that its exported files keep."""


def about(
    config: TrainConfig, facts: DatasetFacts, step: int, summary: JSON | None
) -> About:
    """Returns what an exported file says of its network.

    Args:
      config: The configuration that names the model.
      facts: What the network knows of its data set.
      step: The step of the checkpoint.
      summary: The summary of the run, or the figures of it that a file kept; None if
        the run is unfinished.
    """
    return About(
        config, facts, step, {k: summary[k] for k in FIGURES} if summary else {}
    )


def write(path: Path, said: About, params: Params, masks: Masks, use: str) -> None:
    """Writes the model card: what the network is, and how it is used.

    Args:
      path: The exported file; the card is beside it, with `.md` behind its name.
      said: What the file says of its network.
      params: The parameters.
      masks: Their mask tree.
      use: How the file is used; `{name}` stands for its name.

    Raises:
      RunError: It cannot be written.
    """
    config, facts = said.config, said.facts
    sizes = [np.size(x) for x in jax.tree.leaves(params)]
    live = sum(
        size if np.ndim(mask) == 0 else np.count_nonzero(mask)
        for size, mask in zip(sizes, jax.tree.leaves(masks), strict=True)
    )
    shape = " x ".join(map(str, facts.image_shape))
    options = "".join(f", {option}" for option in config.model_options)
    outputs = "values" if facts.task == "regression" else "classes"
    names = {"test_accuracy": f"test {facts.score}"}
    figures = [
        f"{names.get(key, key.replace('_', ' '))} {value:.6g}"
        for key, value in said.figures.items()
        if key not in ("status", "steps")
    ]
    lines = [
        f"# {path.name}",
        "",
        f"- Model: {config.model}, width {config.width:g}{options}",
        f"- Parameters: {sum(sizes):,}, of which {live:,} are live",
        f"- Data set: {facts.name}, {facts.num_classes} {outputs}, examples of {shape}",
        f"- Training: {config.method}, {config.gradient}, {config.optimizer}, "
        f"{config.epochs} epochs, seed {config.seed}",
        *([f"- Started from: {Path(config.from_).name}"] if config.from_ else []),
        *([f"- At the end of the training: {', '.join(figures)}"] if figures else []),
        "",
        use.replace("{name}", path.name),
    ]
    card = path.with_name(f"{path.name}.md")
    with explained(card):
        card.write_text("\n".join(lines))
