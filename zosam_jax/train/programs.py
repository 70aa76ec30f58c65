"""The compiled programs of a run, and the arrays that they share."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.data import Streamed
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import accuracy, methods
from zosam_jax.train import step as steps
from zosam_jax.train.batch import epoch_order, gather
from zosam_jax.train.step import Totals, TrainState
from zosam_jax.train.task import Task


class Programs:
    """The programs of a task, each compiled once, ahead of its first call.

    A training set in memory is put on the devices, where a step gathers its batch.
    Batches of a streamed one come from the host, and so do those of all test sets.

    Attributes:
      task: The task.
      abstract: Shapes and shardings of the state.
      scans: Whether `advance` runs many steps in one compiled loop.
      is_compiled: Whether `compile` was called.
      compile_seconds: Seconds of tracing and compilation, by program.
    """

    def __init__(self, task: Task):
        """Traces the initial state and a step, which checks methods; compiles nothing.

        Raises:
          ValueError: A method cannot meet the configuration.
        """
        self.task = task
        self.compile_seconds: dict[str, float] = {}
        self.is_compiled = False
        loop = task.config.loop
        is_cpu = task.mesh.devices.flat[0].platform == "cpu"
        scans = not is_cpu if loop == "auto" else loop == "scan"
        self.scans = scans and not task.streams
        self._teacher = None if task.teacher is None else task.teacher[1]
        self.abstract = self._abstract(jax.eval_shape(self._first, *self._examples()))
        advance, rest = self._advance_batch, []
        if not task.streams:
            advance = self._advance_scan if self.scans else self._advance_step
            rest = [jax.eval_shape(lambda: epoch_order(task, jnp.int32(0)))]
            rest += [np.int32(0)] if self.scans else []
        rest = self._abstract([self._teacher, *rest])
        self._traced = self._trace(
            "train", advance, self.abstract, *self._examples(), *rest, donate=0
        )

    def _abstract(self, tree: Any) -> Any:
        sharding = self.task.replicated()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def _examples(self) -> tuple[Any, ...]:
        """Shapes of the examples and labels that a step takes: a batch, or the set."""
        data = self.task.dataset
        if isinstance(data, Streamed):
            return self._batch(self.task.config.batch_size)
        return self._abstract((data.train_images, data.train_labels))

    def _batch(self, size: int) -> tuple[Any, ...]:
        """Shapes of a batch that comes from the host."""
        place = self.task.over_devices()
        return tuple(
            jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=place)
            for x in self.task.example
        )

    def _trace(
        self, name: str, function: Callable[..., Any], *shapes: Any, donate: Any = ()
    ) -> Any:
        started = time.perf_counter()
        jitted = jax.jit(
            function, donate_argnums=donate, out_shardings=self.task.replicated()
        )
        traced = jitted.trace(*shapes)
        self.compile_seconds[name] = time.perf_counter() - started
        return traced

    def _finish(self, name: str, traced: Any) -> Callable[..., Any]:
        started = time.perf_counter()
        compiled = traced.lower().compile()
        self.compile_seconds[name] += time.perf_counter() - started
        return compiled

    def _compile(
        self, name: str, function: Callable[..., Any], *shapes: Any
    ) -> Callable[..., Any]:
        return self._finish(name, self._trace(name, function, *shapes))

    def compile(self) -> None:
        """Puts the data on the devices and compiles all but the initial state.

        A second call does nothing.
        """
        if self.is_compiled:
            return
        task, place = self.task, self.task.replicated()
        self._teacher = jax.device_put(self._teacher, place)
        data = task.dataset
        if not isinstance(data, Streamed):
            zero = self._abstract(np.int32(0))
            self._set = jax.device_put((data.train_images, data.train_labels), place)
            self._order = self._compile("order", lambda e: epoch_order(task, e), zero)
        self._advance = self._finish("train", self._traced)
        self._live = None
        if methods.trains_pruned(task.config):
            state = self.abstract
            self._live = self._compile(
                "mask",
                lambda *arguments: methods.live_params(task.config, *arguments),
                *(steps.trained(state)[0], state.opt_state),
            )
        self._evaluate = self._compile(
            "evaluate",
            lambda *arguments: accuracy.add_batch(task, *arguments),
            *(self.abstract.params, self.abstract.model_state),
            *self._batch(accuracy.batch_size(task)),
            *self._abstract((np.int32(0), accuracy.no_totals())),
        )
        self.is_compiled = True

    def again(self, config: TrainConfig) -> "Programs":
        """Returns the same programs, not compiled again, for another run.

        Args:
          config: The other run's configuration. It differs in nothing that a program
            reads, as the folder, or the ticket and its sparsity: the state holds those.
        """
        other = copy.copy(self)
        other.task = dataclasses.replace(self.task, config=config)
        other.compile_seconds = {} if self.is_compiled else dict(self.compile_seconds)
        return other

    def _first(self, images: jax.Array, labels: jax.Array) -> TrainState:
        task, zero = self.task, jnp.zeros((), jnp.int32)
        if not task.streams:
            images, labels = gather(task, zero, epoch_order(task, zero), images, labels)
        return steps.init(task, images, labels)

    def _advance_batch(
        self, state: TrainState, images: jax.Array, labels: jax.Array, teacher: Any
    ) -> tuple[TrainState, Totals]:
        state = steps.train_step(self.task, state, images, labels, teacher)
        return state, state.totals

    def _advance_step(
        self,
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        teacher: Any,
        order: jax.Array,
    ) -> tuple[TrainState, Totals]:
        batch = gather(self.task, state.step, order, images, labels)
        return self._advance_batch(state, *batch, teacher)

    def _advance_scan(
        self, state: TrainState, *arguments: Any
    ) -> tuple[TrainState, Totals]:
        # The number of steps is an argument, not part of the program: an epoch, the
        # rest of one after a resume, and a shorter block all run the same code.
        *data, stop = arguments
        state = jax.lax.while_loop(
            lambda state: state.step < stop,
            lambda state: self._advance_step(state, *data)[0],
            state,
        )
        return state, state.totals

    def init(self) -> TrainState:
        """Returns the state before the first step."""
        create = self._compile("init", self._first, *self._examples())
        if not self.task.streams:
            return create(*self._set)
        with contextlib.closing(self.batches(0)) as batches:
            return create(*next(batches))

    def place(self, snapshot: Any) -> TrainState:
        """Returns a restored snapshot as a state on the devices."""
        return jax.device_put(snapshot, self.task.replicated())

    def batches(self, step: int) -> Generator[Any, None, None]:
        """Yields what `advance` needs for every step of an epoch, from `step` on.

        For a set in memory that is the order of the epoch, each time; for a stream the
        batch of the step.
        """
        task, config = self.task, self.task.config
        if not isinstance(task.dataset, Streamed):
            order = self._order(np.int32(step // task.steps_per_epoch))
            while True:
                yield (order,)
        stream = task.dataset.batches(
            config.seed, config.batch_size, step, workers=config.workers
        )
        with contextlib.closing(stream):
            for batch in stream:
                yield jax.device_put(batch, task.over_devices())

    def advance(
        self, state: TrainState, batch: Any, stop: int
    ) -> tuple[TrainState, Totals]:
        """Trains up to a step, or by one where `scans` is off; `state` is used up.

        Returns without waiting for the devices: the new state, and a copy of its totals
        that outlives it.

        Args:
          state: The state.
          batch: The next of `batches`.
          stop: The step.
        """
        if self.task.streams:
            return self._advance(state, *batch, self._teacher)
        last = [np.int32(stop)] if self.scans else []
        return self._advance(state, *self._set, self._teacher, *batch, *last)

    def evaluate(self, state: TrainState, split: str = "test") -> tuple[float, float]:
        """Returns the mean loss and the accuracy of the network on a held-out set.

        Args:
          state: The state; where it has averages, the network is those.
          split: "test" or "validation".
        """
        task = self.task
        params, model_state = steps.trained(state)
        if self._live is not None:
            params = self._live(params, state.opt_state)
        totals = jax.device_put(accuracy.no_totals(), task.replicated())
        examples = predictions = 0
        for images, labels, count in accuracy.batches(task, split):
            batch = jax.device_put((images, labels), task.over_devices())
            totals = self._evaluate(
                params, model_state, *batch, np.int32(count), totals
            )
            examples += count
            predictions += labels[:count].size
        loss, correct = jax.device_get(totals)
        return float(loss) / examples, int(correct) / predictions
