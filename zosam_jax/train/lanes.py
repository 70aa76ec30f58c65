"""Trainings that differ in values alone, side by side in one program.

`jax.vmap` trains all lanes at once. What counts steps has no lane: a branch on it, as
one that changes the topology, is then taken by all lanes or by none. With a counter for
each lane, both of its sides would run in every step.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.data import Dataset
from zosam_jax.train import accuracy
from zosam_jax.train import step as steps
from zosam_jax.train.batch import epoch_order, gather
from zosam_jax.train.compiled_run import Program, first_state
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import Totals, TrainState

COUNTERS = ("step", "steps", "count", "gradient_step", "mini_step")
"""Names of the fields of a state that are the same in all lanes."""


class Parts(NamedTuple):
    """The state of all lanes.

    Attributes:
      common: The counters, which all lanes share.
      own: All other arrays, with an axis of lanes in front.
    """

    common: list[jax.Array]
    own: list[jax.Array]


class Lanes:
    """The programs of several trainings, each of which trains all of them.

    A lane is the training of its experiment alone, but for rounding: it has the same
    draws. A lane that diverges does not change the others.

    Attributes:
      experiments: The experiment of each lane. They differ in seed, labels and what
        `vary` changes.
      compile_seconds: Seconds of tracing and compilation, by program.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        vary: Callable[[Any], Experiment],
        values: PyTree,
    ):
        """Traces the first state; compiles nothing.

        Args:
          experiments: The experiment of each lane, on one device, with its data set in
            memory. All have the same images.
          vary: Returns the experiment of a lane by its values, which are traced.
          values: Arrays of these values, with an axis of lanes in front.
        """
        self.experiments = experiments
        self.compile_seconds: dict[str, float] = {}
        self._vary, self._values = vary, jax.tree.map(jnp.asarray, values)
        self._images = jnp.asarray(_examples(experiments[0])[0])
        self._labels = jnp.asarray(np.stack([_examples(x)[1] for x in experiments]))
        lane = jax.tree.map(lambda x: x[0], (self._values, self._labels))
        self.abstract: TrainState = jax.eval_shape(self._first, *lane, self._images)
        paths = jax.tree.leaves_with_path(self.abstract)
        self._is_common = [_is_counter(path) for path, _ in paths]
        self._structure = jax.tree.structure(self.abstract)
        self._is_compiled = False

    @property
    def _base(self) -> Experiment:
        return self.experiments[0]

    def _apart(self, state: PyTree) -> Parts:
        leaves = list(zip(jax.tree.leaves(state), self._is_common, strict=True))
        common = [x for x, is_common in leaves if is_common]
        return Parts(common, [x for x, is_common in leaves if not is_common])

    def _joined(self, common: Sequence[Any], own: Sequence[Any]) -> TrainState:
        both = iter(common), iter(own)
        leaves = [next(both[0] if x else both[1]) for x in self._is_common]
        return jax.tree.unflatten(self._structure, leaves)

    def _first(self, value: Any, labels: jax.Array, images: jax.Array) -> TrainState:
        return first_state(self._vary(value), images, labels)

    def _all_first(self, values: Any, labels: jax.Array, images: jax.Array) -> PyTree:
        # Initial values come from keys of the kind rbg, which `vmap` would draw from
        # once for all lanes.
        def first(lane: Any) -> TrainState:
            value, own = lane
            return self._first(value, own, images)

        return jax.lax.map(first, (values, labels))

    def _orders(self, values: Any, epoch: jax.Array) -> jax.Array:
        return jax.vmap(lambda value: epoch_order(self._vary(value), epoch))(values)

    def _step(
        self,
        common: list[jax.Array],
        own: list[jax.Array],
        value: Any,
        labels: jax.Array,
        order: jax.Array,
        images: jax.Array,
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns the counters and the rest of a lane after one more batch."""
        made, state = self._vary(value), self._joined(common, own)
        batch = gather(made, state.step, order, images, labels)
        parts = self._apart(steps.train_step(made, state, *batch, None))
        return parts.common, parts.own

    def _advance(self, parts: Parts, stop: jax.Array, *data: PyTree) -> Parts:
        lane = jax.vmap(
            self._step, in_axes=(None, 0, 0, 0, 0, None), out_axes=(None, 0)
        )

        def step(parts: Parts) -> Parts:
            return Parts(*lane(*parts, *data))

        if not self._base.scans:
            return step(parts)
        return jax.lax.while_loop(
            lambda parts: self._joined(*parts).step < stop, step, parts
        )

    def _add(self, *arguments: PyTree) -> accuracy.EvalTotals:
        """Returns the sums over test examples with a batch added, for each lane."""

        def add(
            params: PyTree, model_state: PyTree, totals: PyTree, *batch: Any
        ) -> accuracy.EvalTotals:
            images, labels, count = batch
            return accuracy.add_batch(
                self._base, params, model_state, images, labels, count, totals
            )

        return jax.vmap(add, in_axes=(0, 0, 0, None, 0, None))(*arguments)

    def _live(self, parts: Parts) -> PyTree:
        """Returns the parameters of each lane, zero where pruned."""

        def live(common: list[jax.Array], own: list[jax.Array]) -> PyTree:
            state = self._joined(common, own)
            params, _ = steps.evaluated(state)
            return steps.live_params(self._base, params, state.opt_state)

        return jax.vmap(live, in_axes=(None, 0))(*parts)

    def _compile(
        self,
        name: str,
        function: Program,
        *arguments: PyTree,
        donate: tuple[int, ...] = (),
    ) -> Program:
        started = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        compiled = lowered.compile()
        self.compile_seconds[name] = time.perf_counter() - started
        return compiled

    def compile(self) -> None:
        """Compiles all programs. A second call does nothing.

        Raises:
          ValueError: A field named as in `COUNTERS` differs between lanes.
        """
        if self._is_compiled:
            return
        self._is_compiled = True
        lanes, zero = (self._values, self._labels), np.int32(0)
        self._init = self._compile("init", self._all_first, *lanes, self._images)
        self._order = self._compile("order", self._orders, self._values, zero)
        state = jax.eval_shape(self._all_first, *lanes, self._images)
        parts = self._apart(state)
        parts = parts._replace(
            common=[jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in parts.common]
        )
        orders = jax.eval_shape(self._orders, self._values, zero)
        data = *lanes, orders, self._images
        self._train = self._compile(
            "train", self._advance, parts, zero, *data, donate=(0,)
        )
        params, model_state = steps.evaluated(state)
        self._mask = None
        if self._base.holds_pruned:
            self._mask = self._compile("mask", self._live, parts)
        images, labels, _ = next(accuracy.batches(self._base, "test"))
        self._evaluate = self._compile(
            "evaluate",
            self._add,
            *(params, model_state, self._no_totals()),
            *(images, self._for_lanes([labels]), zero),
        )

    def _no_totals(self) -> accuracy.EvalTotals:
        return jax.tree.map(
            lambda x: jnp.zeros((len(self.experiments), *x.shape), x.dtype),
            accuracy.no_totals(self._base),
        )

    def _for_lanes(self, labels: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the labels of each lane, given those of each or of all."""
        stacked = np.stack(labels)
        return np.broadcast_to(
            stacked, (len(self.experiments), *stacked.shape[1:])
        ).copy()

    def init(self) -> Parts:
        """Returns the state of all lanes before the first step."""
        state = self._init(self._values, self._labels, self._images)
        parts = self._apart(state)
        return parts._replace(common=[x[0] for x in parts.common])

    def epoch(
        self, parts: Parts, number: int, is_over: Callable[[], bool] = lambda: False
    ) -> Parts:
        """Returns the state after an epoch. The buffers of `parts` are donated.

        Args:
          parts: The state at its beginning.
          number: Number of the epoch, from 0.
          is_over: Asked before each call of the program; True ends the epoch early.
        """
        data = self._values, self._labels, self._order(self._values, np.int32(number))
        count = self._base.steps_per_epoch
        start, stop = number * count, (number + 1) * count
        for step in (stop,) if self._base.scans else range(start + 1, stop + 1):
            if is_over():
                break
            parts = self._train(parts, np.int32(step), *data, self._images)
        return parts

    def step(self, parts: Parts) -> int:
        """Returns the number of steps done."""
        return int(self._joined(*parts).step)

    def totals(self, parts: Parts) -> list[Totals]:
        """Returns the sums over the epoch so far of each lane, as NumPy arrays."""
        return self._by_lane(self._joined(*parts).totals)

    def states(self, parts: Parts) -> list[TrainState]:
        """Returns the state of each lane, as NumPy arrays."""
        return self._by_lane(self._joined(*parts))

    def _by_lane(self, tree: PyTree) -> list[Any]:
        found = jax.device_get(tree)
        return [
            jax.tree.map_with_path(
                lambda path, x, k=k: x if _is_counter(path) else x[k], found
            )
            for k in range(len(self.experiments))
        ]

    def evaluate(self, parts: Parts, split: str = "test") -> list[dict[str, float]]:
        """Returns the figures of each lane, see `accuracy.figures`.

        Args:
          parts: The state. If it has a moving average, that is evaluated.
          split: See `accuracy.batches`.
        """
        params, model_state = steps.evaluated(self._joined(*parts))
        if self._mask is not None:
            params = self._mask(parts)
        # Label noise depends on the seed; the other sets are the same for all lanes.
        sources = self.experiments if split == "train" else self.experiments[:1]
        totals, examples, predictions = self._no_totals(), 0, 0
        for rows in zip(*(accuracy.batches(x, split) for x in sources), strict=True):
            images, _, count = rows[0]
            labels = self._for_lanes([row[1] for row in rows])
            totals = self._evaluate(
                params, model_state, totals, images, labels, np.int32(count)
            )
            examples += count
            predictions += count * labels[0, 0].size
        return [
            accuracy.figures(experiment, split, own, examples, predictions)
            for experiment, own in zip(
                self.experiments, self._by_lane(totals), strict=True
            )
        ]


def _examples(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    dataset = experiment.dataset
    assert isinstance(dataset, Dataset)
    return dataset.train_images, dataset.train_labels


def _is_counter(path: Sequence[Any]) -> bool:
    """Whether a leaf of a state, by its path, is the same in all lanes."""
    names = [getattr(entry, "name", None) for entry in path]
    if names[-2:-1] == ["accumulated"]:
        # Its first entry is the number of batches since the last step.
        return getattr(path[-1], "idx", None) == 0
    return names[-1] in COUNTERS
