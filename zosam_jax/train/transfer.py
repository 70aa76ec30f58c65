"""Training that starts from trained weights: what is taken over, and what is new.

Every leaf of the new network must be in the source, by path and shape, with three
exceptions. The outputs of other classes are new, and so are the heads of a network of
pixels that the source lacks. Position embeddings of another number of patches are
resized.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import _check
from zosam_jax._types import Masks, Params, PyTree, Shape
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity.starting_masks import start_from
from zosam_jax.train.experiment import Experiment, ModelState

_HEADS = ("head/*", "*_head/*", "*/head/*")
_POSITIONS = "position_embedding"
_TOKENS = ("class_token", "distillation_token")


class Source(NamedTuple):
    """The network that a training starts from.

    Attributes:
      name: What messages call it.
      said: What of it is used, as "step 400"; "" if there is nothing to say.
      params: Parameters by path, as NumPy arrays.
      model_state: Its other collections by path, as "batch_stats/norm/mean".
      masks: Masks by path; scalars for dense leaves, or none at all.
      class_names: Names of its classes in the order of its outputs; None if unknown.
    """

    name: str
    said: str
    params: Mapping[str, np.ndarray]
    model_state: Mapping[str, np.ndarray]
    masks: Mapping[str, np.ndarray]
    class_names: Sequence[str] | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights in its sparse leaves; 0 if there is none."""
        sparse = [m for m in self.masks.values() if m.ndim]
        total = sum(m.size for m in sparse)
        return sum(m.size - np.count_nonzero(m) for m in sparse) / max(total, 1)


class Arrays(NamedTuple):
    """The arrays that a training starts from.

    Attributes:
      params: A tree like the parameters, with `optax.MaskedNode()` for new leaves.
      model_state: A tree like the other collections, likewise.
      masks: A mask tree, likewise; None if the method draws its masks.
    """

    params: PyTree
    model_state: PyTree
    masks: PyTree | None


class Start(NamedTuple):
    """The start of a training.

    Attributes:
      arrays: What it starts from.
      said: What is taken over and what is new, in a line.
      record: The same for `config.json`.
    """

    arrays: Arrays
    said: str
    record: JSON


def source(
    name: str,
    params: Params,
    model_state: ModelState,
    masks: Masks | None = None,
    class_names: Sequence[str] | None = None,
    said: str = "",
) -> Source:
    """Returns a source of the trees of a network.

    Args:
      name: As in `Source`.
      params: Parameters.
      model_state: Other collections; {} if there are none.
      masks: Mask tree; None if no weight is pruned.
      class_names: As in `Source`.
      said: As in `Source`.

    Raises:
      RunError: A weight is not finite.
    """
    if masks is None:
        masks = jax.tree.map(lambda _: True, params)
    return checked(
        Source(name, said, _flat(params), _flat(model_state), _flat(masks), class_names)
    )


def checked(found: Source) -> Source:
    """Returns a source, whose weights are finite.

    Raises:
      RunError: A weight is not.
    """
    for path, x in {**found.params, **found.model_state}.items():
        if not np.isfinite(x.astype(np.float32)).all():
            raise RunError(f"{found.name} has weights that are not finite, in {path}.")
    return found


def _flat(tree_: PyTree) -> dict[str, np.ndarray]:
    leaves = map(np.asarray, jax.tree.leaves(tree_))
    return dict(zip(_check.paths(tree_), leaves, strict=True))


def begin(found: Source, experiment: Experiment, masks: str, sparsity: float) -> Start:
    """Returns the start of a training from a source.

    Args:
      found: The source.
      experiment: The experiment of the training.
      masks: "keep", "drawn", or "auto": keep them if there are some and the method can
        start from them.
      sparsity: Sparsity of the configuration, which that of kept masks must be.

    Raises:
      RunError: Something does not fit.
    """
    like, state = jax.eval_shape(experiment.initialize, jax.random.key(0))
    leaves = _Leaves(found, experiment.facts)
    params = _matched(like, leaves.parameter)
    leaves.check_all_used(_check.paths(like))
    collections = _matched(state, leaves.statistic)
    kept = _kept_masks(found, experiment, masks, sparsity, params)
    if kept is not None:
        _check_kept(found, experiment, kept, like)
    how = "no masks" if experiment.method is None else "masks drawn by the method"
    if kept is not None:
        how = f"masks kept, at sparsity {found.sparsity:.4g}"
    notes = [
        f"starts from {found.name}" + f" ({found.said})" * bool(found.said),
        f"{len(leaves.taken)} arrays taken over",
        *([f"new: {', '.join(leaves.new)}"] if leaves.new else []),
        *([f"resized: {', '.join(leaves.resized)}"] if leaves.resized else []),
        how,
    ]
    record = {
        "source": found.said,
        "taken": len(leaves.taken),
        "new": leaves.new,
        "resized": leaves.resized,
        "masks": how,
    }
    return Start(Arrays(params, collections, kept), "; ".join(notes), record)


def replaced(own: PyTree, given: PyTree) -> PyTree:
    """Returns a tree with the given leaves in place of its own.

    Args:
      own: Pytree of arrays.
      given: A tree like it, with `optax.MaskedNode()` where its own leaves stay.
    """
    return jax.tree.map(lambda x, new: x if _is_new(new) else new, own, given)


def _is_new(x: object) -> bool:
    return isinstance(x, optax.MaskedNode)


def _matched(like: PyTree, leaf: Callable[[str, Any], Any]) -> PyTree:
    """Returns a tree of `leaf(path, shape and type)`."""
    shapes, structure = jax.tree.flatten(like)
    pairs = zip(_check.paths(like), shapes, strict=True)
    return jax.tree.unflatten(structure, [leaf(path, x) for path, x in pairs])


class _Leaves:
    """The leaves of a network, one after another, and where each comes from."""

    def __init__(self, found: Source, facts: DatasetFacts):
        self.found, self.facts = found, facts
        self.taken: list[str] = []
        self.new: list[str] = []
        self.resized: list[str] = []
        named = found.class_names
        self.has_other_classes = named is not None and [*named] != [*facts.class_names]

    def parameter(self, path: str, like: jax.ShapeDtypeStruct) -> Any:
        """Returns a parameter of the source; `optax.MaskedNode()` for a new one."""
        x = self.found.params.get(path)
        if x is None and self._is_other_head(path):
            self.new.append(f"{path} {[*like.shape]}")
            return optax.MaskedNode()
        if x is None:
            raise RunError(
                f"{self.found.name} lacks the parameter {path!r} {[*like.shape]} of "
                "this network. Take the same --model and --model-options for both."
            )
        if self._is_output(path, x.shape, like.shape):
            self.new.append(f"{path} {[*x.shape]} -> {[*like.shape]}")
            return optax.MaskedNode()
        if x.shape != like.shape and path.endswith(_POSITIONS):
            self.resized.append(f"{path} {[*x.shape]} -> {[*like.shape]}")
            x = self._positions(path, x, like.shape)
        return self._fitting(path, x, like)

    def statistic(self, path: str, like: jax.ShapeDtypeStruct) -> Any:
        """Returns a leaf of the other collections, likewise."""
        if not self.found.model_state:
            self.new.append(path)
            return optax.MaskedNode()
        if path not in self.found.model_state:
            raise RunError(f"{self.found.name} lacks {path!r} of this network.")
        return self._fitting(path, self.found.model_state[path], like)

    def _fitting(
        self, path: str, x: np.ndarray, like: jax.ShapeDtypeStruct
    ) -> np.ndarray:
        if x.shape != like.shape:
            raise RunError(
                f"{path!r} is {[*x.shape]} in {self.found.name} and {[*like.shape]} in "
                "this network. Take the same --model, --width and --model-options for "
                "both, and images of as many channels."
            )
        self.taken.append(path)
        return np.asarray(x, like.dtype)

    def _is_other_head(self, path: str) -> bool:
        """Whether a leaf is of a head, and the network one of pixels, with skips."""
        is_head = any(fnmatch.fnmatchcase(path, pattern) for pattern in _HEADS)
        return self.facts.task == "segmentation" and is_head

    def _is_output(self, path: str, old: Shape, new: Shape) -> bool:
        """Whether a leaf makes the logits, of other classes than in the source."""
        is_head = any(fnmatch.fnmatchcase(path, pattern) for pattern in _HEADS)
        if old == new:
            return self.has_other_classes and is_head
        is_last = old[:-1] == new[:-1] and new[-1:] == (self.facts.num_classes,)
        classes = len(self.found.class_names or ())
        return is_last and (is_head or old[-1] == classes)

    def _positions(self, path: str, x: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns position embeddings for another number of patches."""
        prefix = sum(token in self.found.params for token in _TOKENS)
        sides = [math.isqrt(size - prefix) for size in (len(x), shape[0])]
        is_square = [s * s + prefix for s in sides] == [len(x), shape[0]]
        if self.facts.kind != "image" or x.shape[1:] != shape[1:] or not is_square:
            raise RunError(
                f"{path!r} is {[*x.shape]} in {self.found.name} and {[*shape]} in this "
                "network: only those of square images, with as many features, can be "
                "resized."
            )
        return resized_positions(x, shape[0], prefix)

    def check_all_used(self, paths: Sequence[str]) -> None:
        """Raises `RunError` if the source has parameters that this network lacks."""
        others = sorted(set(self.found.params) - set(paths))
        others = [path for path in others if not self._is_other_head(path)]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise RunError(
                f"{self.found.name} has the parameter {others[0]!r}{more}, which this "
                "network lacks. Take the same --model and --model-options for both."
            )


def resized_positions(x: np.ndarray, tokens: int, prefix: int) -> np.ndarray:
    """Returns the position embeddings of a square grid of another size.

    The grid is resized by the cubic filter of Keys (a = -1/2), with antialiasing where
    it shrinks, as timm does (`resample_abs_pos_embed`); DeiT's own code takes a = -3/4.
    The embeddings of the tokens before the patches stay as they are.

    Args:
      x: `[T, D]`, float32.
      tokens: The new number of tokens.
      prefix: Number of tokens before the patches.

    >>> resized_positions(np.ones((5, 2)), 17, 1).shape
    (17, 2)
    """
    old, new = (math.isqrt(size - prefix) for size in (len(x), tokens))
    grid = jnp.reshape(x[prefix:], (old, old, -1))
    grid = jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic")
    return np.concatenate([x[:prefix], np.reshape(grid, (new * new, -1))])


def _kept_masks(
    found: Source, experiment: Experiment, masks: str, sparsity: float, params: PyTree
) -> PyTree | None:
    """Returns the masks to start from; None if the method draws them."""
    method, has_masks = experiment.method, any(m.ndim for m in found.masks.values())
    can_keep = method is not None and method.begin is not None
    if masks == "drawn" or (masks == "auto" and not (has_masks and can_keep)):
        return None
    if not has_masks:
        raise RunError(
            f"from_masks='keep': no weight of {found.name} is pruned. Say --from-masks "
            "drawn."
        )
    name = experiment.labels["method"]
    if not can_keep:
        raise RunError(
            f"from_masks='keep': method={name!r} cannot start from given masks. Say "
            "--from-masks drawn, or take rigl, set, or magnitude for fixed masks."
        )
    if "(given)" not in name and abs(found.sparsity - sparsity) > 0.0005:
        raise RunError(
            f"sparsity={sparsity:g}: the masks of {found.name} that are kept have "
            f"sparsity {found.sparsity:.4g}. Say --sparsity {found.sparsity:.4g}, or "
            "--from-masks drawn."
        )

    def leaf(path: str, x: Any) -> Any:
        return x if _is_new(x) else found.masks[path]

    paths = _check.paths(jax.tree.map(lambda _: 0, params, is_leaf=_is_new))
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_new)
    return jax.tree.unflatten(structure, map(leaf, paths, leaves))


def _check_kept(
    found: Source, experiment: Experiment, masks: PyTree, like: Params
) -> None:
    """Raises `RunError` if the method cannot start from the masks of a source."""
    assert experiment.method is not None
    begun = start_from(experiment.method, masks)
    try:
        jax.eval_shape(begun.init, like)
    except ValueError as error:
        raise RunError(
            f"the masks of {found.name} cannot be kept: {error} Or say --from-masks "
            "drawn."
        ) from error
