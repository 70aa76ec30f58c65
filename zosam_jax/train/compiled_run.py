"""The compiled programs of a run and the arrays that they share."""

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.data import Dataset, Streamed
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity import masks as sparse_masks
from zosam_jax.train import accuracy, narrowed, sharding
from zosam_jax.train import step as steps
from zosam_jax.train.batch import class_balanced, epoch_order, gather
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import Totals, TrainState
from zosam_jax.train.transfer import Arrays, Start

Program = Callable[..., Any]
"""A compiled function of arrays."""


class _Traced(NamedTuple):
    """A traced program and the seconds that tracing took."""

    program: jax.stages.Traced
    seconds: float


class CompiledRun:
    """The programs of an experiment, each compiled once, ahead of its first call.

    The seed is an argument of the programs, so they are the same for every seed, and
    JAX's cache on disk has them for all.

    A training set in memory is copied to the devices, where a step gathers its batch.
    Batches of a streamed set come from the host, as those of all test sets do.

    Attributes:
      experiment: The experiment.
      start: What it starts from; None: the initial weights of its seed.
      abstract: Shapes and shardings of the state.
      is_compiled: Whether `compile` was called.
      compile_seconds: Seconds of tracing and compilation, by program.
    """

    def __init__(self, experiment: Experiment, start: Start | None = None):
        """Traces all that depends on the user's choices; compiles nothing.

        Args:
          experiment: The experiment.
          start: Trained weights to start from.

        Raises:
          ValueError: The gradient or the method does not fit the model or the data.
          RunError: A given loss does not fit them.
        """
        self.experiment = experiment
        self.start = start
        self.compile_seconds: dict[str, float] = {}
        self.is_compiled = False
        self._teacher = experiment.teacher and experiment.teacher.variables
        self._seed = np.int32(experiment.seed)
        seed = self._abstract(self._seed)
        begin = None if start is None else self._in_parts(start.arrays)
        arguments = seed, *self._examples(), begin
        parts: PyTree = experiment.replicated()
        if experiment.mesh.shape["fsdp"] > 1:
            # The shapes come first: what is to lie in parts is never whole on a device.
            parts = experiment.in_parts(jax.eval_shape(self._first, *arguments))
        self._first_traced = self._trace(self._first, *arguments, to=parts)
        self.abstract = self._in_parts(self._first_traced.program.out_info)
        self._whole = self.abstract
        self._order: Program | None = None
        self._before: dict[str, float] = {}
        self._trace_steps()

    def _trace_steps(self) -> None:
        """Traces the training and the evaluation."""
        experiment, seed = self.experiment, self._abstract(self._seed)
        parts = experiment.in_parts(self.abstract)
        advance, rest = self._advance_batch, []
        if not experiment.streams:
            advance = self._advance_scan if experiment.scans else self._advance_step
            rest = [jax.eval_shape(self._epoch_order, self._seed, np.int32(0))]
            rest += [np.int32(0)] if experiment.scans else []
        rest = [self._in_parts(self._teacher), *self._abstract(rest)]
        self._train_traced = self._trace(
            *(advance, self.abstract, seed, *self._examples(), *rest),
            donate=0,
            to=(parts, experiment.replicated()),
        )
        before = self._before.get("train", 0.0)
        self.compile_seconds["train"] = before + self._train_traced.seconds
        self._evaluate_traced = self._traced_evaluation()

    def _traced_evaluation(self) -> _Traced:
        experiment = self.experiment
        return self._trace(
            lambda *arguments: accuracy.add_batch(experiment, *arguments),
            *(self.abstract.params, self.abstract.model_state),
            *self._batch(accuracy.batch_size(experiment)),
            *self._abstract((np.int32(0), accuracy.no_totals(experiment))),
        )

    def _abstract(self, tree: PyTree) -> PyTree:
        """Returns the shapes and types of a tree of arrays, replicated."""
        place = self.experiment.replicated()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
        )

    def _in_parts(self, tree: PyTree) -> PyTree:
        """Returns the shapes and types of a state, or of a part of it."""
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
            *(tree, self.experiment.in_parts(tree)),
        )

    def _examples(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the examples and labels that a step takes: a batch, or the set."""
        dataset = self.experiment.dataset
        assert dataset is not None
        if isinstance(dataset, Streamed):
            return self._batch(self.experiment.batch_size)
        return self._abstract((dataset.train_images, dataset.train_labels))

    def _batch(self, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of a batch that comes from the host."""
        place = self.experiment.over_devices()
        return tuple(
            jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=place)
            for x in self.experiment.example
        )

    def _trace(
        self,
        function: Program,
        *shapes: PyTree,
        donate: int | tuple[int, ...] = (),
        to: PyTree = None,
    ) -> _Traced:
        """Returns a program, whose results are replicated by default."""
        started = time.perf_counter()
        to = self.experiment.replicated() if to is None else to
        jitted = jax.jit(function, donate_argnums=donate, out_shardings=to)
        traced = jitted.trace(*shapes)
        return _Traced(traced, time.perf_counter() - started)

    def _finish(self, name: str, traced: _Traced) -> Program:
        """Returns a traced program, compiled, and notes its time under a name."""
        started = time.perf_counter()
        compiled = traced.program.lower().compile()
        seconds = time.perf_counter() - started
        before = self._before.get(name, 0.0)
        self.compile_seconds[name] = before + traced.seconds + seconds
        return compiled

    def _compile(
        self, name: str, function: Program, *shapes: PyTree, to: PyTree = None
    ) -> Program:
        return self._finish(name, self._trace(function, *shapes, to=to))

    def compile(self) -> None:
        """Puts the data on the devices and compiles all but the initial state.

        A second call does nothing.
        """
        if self.is_compiled:
            return
        experiment, place = self.experiment, self.experiment.replicated()
        parts = experiment.in_parts(self._teacher)
        self._teacher = sharding.place(self._teacher, parts)
        dataset = experiment.dataset
        if isinstance(dataset, Dataset) and self._order is None:
            zero = self._abstract(np.int32(0))
            examples = dataset.train_images, dataset.train_labels
            self._set = sharding.place(examples, place)
            self._order = self._compile(
                "order", self._epoch_order, self._abstract(self._seed), zero
            )
        self._advance = self._finish("train", self._train_traced)
        self._live = None
        if experiment.holds_pruned:
            params = steps.evaluated(self.abstract)[0]
            self._live = self._compile(
                "mask",
                lambda *arguments: steps.live_params(experiment, *arguments),
                *(params, self.abstract.opt_state),
                to=experiment.in_parts(params),
            )
        self._evaluate = self._finish("evaluate", self._evaluate_traced)
        self.is_compiled = True

    def check_live(self, sparsity: float) -> None:
        """Raises `ValueError` if no weight is left at a sparsity.

        Args:
          sparsity: Fraction of the sparse layers' weights that are zero.
        """
        if self.experiment.method is None:
            return
        masks = jax.tree.leaves(sparse_masks(self.abstract.opt_state))
        weights = sum(m.size for m in masks if m.ndim)
        if weights and round((1 - sparsity) * weights) < 1:
            raise ValueError(
                f"sparsity={sparsity:.12g} leaves none of the {weights:,} weights of "
                f"the sparse layers. Say at most {1 - 1 / weights:.6g}."
            )

    def again(self) -> "CompiledRun":
        """Returns the same programs for another run, not compiled again.

        The other run has the same experiment: it differs in its folder or in the state
        that it starts from.
        """
        other = copy.copy(self)
        other.compile_seconds = {} if self.is_compiled else dict(self.compile_seconds)
        return other

    def of_network(self, network: JSON) -> "CompiledRun":
        """Returns the programs for the network of a checkpoint.

        Args:
          network: What the checkpoint says of it; see `zosam_jax.train.narrowed`.
        """
        whole = self.experiment.whole or self.experiment
        return self.narrowed(narrowed.of(whole, network))

    def like(self, network: JSON | None) -> TrainState:
        """Returns the shapes of the state in a checkpoint.

        Args:
          network: What the checkpoint says of its network; None: it is whole.
        """
        if network is None:
            return self._whole
        whole = self.experiment.whole or self.experiment
        return narrowed.state_like(self._whole, narrowed.of(whole, network))

    def narrowed(self, experiment: Experiment) -> "CompiledRun":
        """Returns the programs of the same run for a smaller network, traced.

        The data set stays on the devices.

        Args:
          experiment: The experiment of the smaller network.
        """
        other = copy.copy(self)
        other.experiment = experiment
        other.is_compiled = False
        other._before = dict(self.compile_seconds) if self.is_compiled else {}
        other.compile_seconds = dict(other._before)
        like = narrowed.state_like(self._whole, experiment)
        other.abstract = other._in_parts(like)
        other._trace_steps()
        return other

    def _epoch_order(self, seed: jax.Array, epoch: jax.Array) -> jax.Array:
        return epoch_order(dataclasses.replace(self.experiment, seed=seed), epoch)

    def _first(
        self,
        seed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        start: Arrays | None = None,
    ) -> TrainState:
        return first_state(self.experiment.with_seed(seed), images, labels, start)

    def _advance_batch(
        self,
        state: TrainState,
        seed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        teacher: PyTree,
    ) -> tuple[TrainState, Totals]:
        experiment = self.experiment.with_seed(seed)
        state = steps.train_step(experiment, state, images, labels, teacher)
        return state, state.totals

    def _advance_step(
        self,
        state: TrainState,
        seed: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        teacher: PyTree,
        order: jax.Array,
    ) -> tuple[TrainState, Totals]:
        batch = gather(self.experiment, state.step, order, images, labels)
        return self._advance_batch(state, seed, *batch, teacher)

    def _advance_scan(
        self, state: TrainState, *arguments: PyTree
    ) -> tuple[TrainState, Totals]:
        # The last step is an argument and no part of the program: an epoch, the rest of
        # one after a resume, and a shorter block all run the same code.
        *data, stop = arguments
        state = jax.lax.while_loop(
            lambda state: state.step < stop,
            lambda state: self._advance_step(state, *data)[0],
            state,
        )
        return state, state.totals

    def init(self) -> TrainState:
        """Returns the state before the first step."""
        create = self._finish("init", self._first_traced)
        start = None
        if self.start is not None:
            arrays = self.start.arrays
            start = sharding.place(arrays, self.experiment.in_parts(arrays))
        if not self.experiment.streams:
            return create(self._seed, *self._set, start)
        with contextlib.closing(self.batches(0)) as batches:
            return create(self._seed, *next(batches), start)

    def place(self, snapshot: TrainState) -> TrainState:
        """Returns a restored snapshot as a state on the devices."""
        return sharding.place(snapshot, self.experiment.in_parts(snapshot))

    def batches(self, step: int) -> Generator[tuple[jax.Array, ...], None, None]:
        """Yields the arguments of `advance` for every step of an epoch.

        For a set in memory this is the order of the epoch, every time; for a streamed
        set it is the batch of the step.

        Args:
          step: The step to begin with.
        """
        experiment = self.experiment
        if isinstance(experiment.dataset, Dataset):
            assert self._order is not None
            epoch = np.int32(step // experiment.steps_per_epoch)
            order = self._order(self._seed, epoch)
            while True:
                yield (order,)
        assert experiment.dataset is not None
        host, hosts = experiment.host
        stream = experiment.dataset.batches(
            int(self._seed),
            experiment.batch_size,
            step,
            workers=experiment.workers,
            host=host,
            hosts=hosts,
        )
        with contextlib.closing(stream):
            for batch in stream:
                yield experiment.put(batch)

    def advance(
        self, state: TrainState, batch: tuple[jax.Array, ...], stop: int
    ) -> tuple[TrainState, Totals]:
        """Returns the state at a later step, and a copy of its totals.

        Returns without waiting for the devices. The buffers of `state` are donated.

        Args:
          state: The state.
          batch: The next of `batches`.
          stop: The step to train to. Without `experiment.scans` it must be the next.
        """
        if self.experiment.streams:
            return self._advance(state, self._seed, *batch, self._teacher)
        last = [np.int32(stop)] if self.experiment.scans else []
        fixed = self._seed, *self._set, self._teacher
        return self._advance(state, *fixed, *batch, *last)

    def evaluate(self, state: TrainState, split: str = "test") -> dict[str, float]:
        """Returns the figures on a set of examples, see `accuracy.figures`.

        Args:
          state: The state. If it has a moving average, that is evaluated.
          split: See `accuracy.batches`.
        """
        experiment = self.experiment
        params, model_state = steps.evaluated(state)
        if self._live is not None:
            params = self._live(params, state.opt_state)
        none = accuracy.no_totals(experiment)
        totals = sharding.place(none, experiment.replicated())
        examples = predictions = 0
        for images, labels, count in accuracy.batches(experiment, split):
            batch = experiment.put((images, labels))
            totals = self._evaluate(
                params, model_state, *batch, np.int32(count), totals
            )
            examples += count
            predictions += count * labels[0].size
        totals = jax.device_get(totals)
        return accuracy.figures(experiment, split, totals, examples, predictions)


def first_state(
    experiment: Experiment,
    images: jax.Array,
    labels: jax.Array,
    start: Arrays | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      experiment: The experiment.
      images: All training examples, or the first batch if the set is streamed.
      labels: Their labels.
      start: Trained weights to start from.
    """
    if not experiment.streams:
        zero = jnp.zeros((), jnp.int32)
        order = epoch_order(experiment, zero)
        pick = functools.partial(gather, experiment, zero)
        if experiment.score_images:
            pick = functools.partial(class_balanced, experiment)
        images, labels = pick(order, images, labels)
    return steps.init(experiment, images, labels, start)
