"""The weights that a run starts from: a run, a file or a tree, as the user names it.

A checkpoint holds everything, so a run that resumes needs its source no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from zosam_jax import _check, data, models
from zosam_jax._types import Masks, Params
from zosam_jax.runs import folder, tensor_file
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import checkpoint, stored_run, transfer
from zosam_jax.train.experiment import Experiment, ModelState
from zosam_jax.train.transfer import Source, Start


@runtime_checkable
class Trained(Protocol):
    """A trained network in memory, as `load` returns it."""

    params: Params
    model_state: ModelState
    masks: Masks

    @property
    def facts(self) -> DatasetFacts:
        """The facts of its data set."""
        ...


_PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_TORCH = "of timm or torchvision"
_USUAL = (
    "images are normalized with the statistics of the data set; --normalization "
    "imagenet, or half for a ViT of timm, has those of the weights"
)

Weights = Trained | Mapping[str, Any]
"""A network of `load`; parameters, or all variables of a model, as a tree."""


def is_needed(config: TrainConfig, weights: Weights | None) -> bool:
    """Whether a run has to read the weights that it starts from.

    Args:
      config: The configuration.
      weights: Weights that were given in Python.

    Raises:
      RunError: There are two sources; or the run in the folder began with weights that
        were given in Python, and has no checkpoint.
    """
    if weights is not None and config.from_ is not None:
        raise RunError(
            f"from_={config.from_!r} and weights= are both weights to start from. Say "
            "one of them."
        )
    stored = _stored(config)
    steps = checkpoint.steps_in(config.folder / "checkpoints")
    is_resumed = stored is not None and bool(steps)
    if weights is None and config.from_ is None:
        if stored is not None and not is_resumed:
            raise RunError(
                f"the run in {config.folder} began with weights that were given in "
                "Python, and has no checkpoint. Give them again: weights=."
            )
        return False
    # A source that has moved is read, to see whether it is the same.
    same = stored is not None and stored["path"] == config.from_
    return weights is not None or not (is_resumed and same)


def start(config: TrainConfig, found: Source, experiment: Experiment) -> Start:
    """Returns what a run starts from.

    Args:
      config: The configuration.
      found: The weights that it names, or that were given.
      experiment: Its experiment.

    Raises:
      RunError: They do not fit.
    """
    # The masks of a lottery round come from pruning.
    masks = "drawn" if config.method == "ticket" else config.from_masks
    begun = transfer.begin(found, experiment, masks, config.sparsity)
    read = dict(found.params), dict(found.model_state), begun.arrays.masks
    crc = checkpoint.digest(read)
    said = begun.said
    own = experiment.facts.mean, experiment.facts.std
    if found.said == _TORCH and own not in data.STATISTICS.values():
        said = f"{said}; {_USUAL}"
    return begun._replace(said=said, record={"weights_crc32": crc, **begun.record})


def kept(config: TrainConfig, begun: Start | None) -> JSON:
    """Returns what `config.json` keeps of the weights, as an entry of it.

    Args:
      config: The configuration.
      begun: What the run starts from, if that was read.

    Raises:
      RunError: The run in the folder began with other weights.
    """
    stored = _stored(config)
    if begun is None:
        return {} if stored is None else {"from": stored}
    crc = begun.record["weights_crc32"]
    if stored is not None and stored["weights_crc32"] != crc:
        raise RunError(
            f"the run in {config.folder} began with other weights than those of "
            f"{config.from_ or 'weights='}. Restore them, or choose another --out."
        )
    return {"from": {"path": config.from_, **begun.record}}


def _stored(config: TrainConfig) -> JSON | None:
    """Returns what the run in the folder began with, if it is said."""
    if config.overwrite or not (config.folder / "config.json").exists():
        return None
    return folder.read_config(config.folder).get("from")


def of_run(path: Path, experiment: Experiment, weights: stored_run.Weights) -> Source:
    """Returns the network of a run, or of a file, as a source.

    Args:
      path: Its folder, or the file.
      experiment: Its experiment.
      weights: Its weights, as `network.restore` returns them.
    """
    average = ", the moving average of its weights" * bool(experiment.ema)
    return transfer.source(
        str(path),
        weights.params,
        weights.model_state,
        weights.masks,
        experiment.facts.class_names,
        f"step {weights.step}{average}",
    )


def of_torch(path: Path) -> Source | None:
    """Returns the weights of timm or torchvision in a file as a source.

    Args:
      path: The path that a user gives.

    Returns:
      None if no such file lies there.

    Raises:
      RunError: It has arrays that no model here has, or weights that are not finite.
    """
    if path.suffix in _PICKLES and path.is_file():
        raise RunError(
            f"{path} is a pickle of PyTorch, which may run any code when it is read. "
            "Save it as safetensors, in Python: safetensors.torch.save_file("
            f"model.state_dict(), {path.with_suffix('.safetensors').name!r})."
        )
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    content = tensor_file.read(path)
    if "zosam" in content.metadata:
        return None
    try:
        params, model_state = models.torch_names.renamed(content.tensors)
    except ValueError as error:
        raise RunError(f"{path} is no file of `zosam export`, and {error}") from error
    return transfer.checked(Source(str(path), _TORCH, params, model_state, {}))


def of_memory(weights: Weights) -> Source:
    """Returns the weights that were given in Python as a source.

    Raises:
      RunError: They are no arrays of floats.
    """
    if isinstance(weights, Trained):
        return transfer.source(
            "the given network",
            weights.params,
            weights.model_state,
            weights.masks,
            weights.facts.class_names,
        )
    variables = dict(weights)
    params = variables.pop("params", None)
    if params is None:
        params, variables = weights, {}
    try:
        _check.trainable(params)
    except TypeError as error:
        raise RunError(f"weights=: {error}") from error
    return transfer.source("the given weights", params, variables)
