"""What to try when the loss of a training is not finite."""

from zosam_jax.runs.config import TrainConfig
from zosam_jax.train.experiment import Experiment


def advice(config: TrainConfig, experiment: Experiment) -> str:
    """Returns the options that could help, in sentences.

    Args:
      config: The configuration.
      experiment: Its experiment.
    """
    rate = f"--learning-rate (now {config.learning_rate:g})"
    if experiment.learning_rate is None:
        rate = f"learning rate of {experiment.labels['optimizer']}"
    tries = [f"a lower {rate}", "--clip-norm 1"]
    if rho := experiment.gradient.rho:
        now = f" (now {rho:g})" if isinstance(rho, int | float) else ""
        tries.append(f"a smaller --rho{now}")
    said = f"Try, with another --out, {', '.join(tries[:-1])} or {tries[-1]}."
    own = experiment.labels.get("loss")
    if own is None:
        return said
    return f"See that {own} is finite for every output and label. {said}"
