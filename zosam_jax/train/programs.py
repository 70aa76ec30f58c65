"""The compiled programs of a run, and the arrays that they share."""

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.train import methods
from zosam_jax.train import step as steps
from zosam_jax.train.config import TrainConfig
from zosam_jax.train.step import EvalTotals, Task, Totals, TrainState


class Programs:
    """The programs of a task, each compiled once, ahead of its first call.

    Attributes:
      task: The task.
      abstract: Shapes and shardings of the state.
      scans: Whether `advance` runs many steps in one compiled loop.
      compile_seconds: Seconds of tracing and compilation, by program.
    """

    def __init__(self, task: Task):
        """Traces the initial state and a step, which checks methods; compiles nothing.

        Raises:
          ValueError: A method cannot meet the configuration.
        """
        self.task = task
        self.compile_seconds: dict[str, float] = {}
        self._is_compiled = False
        loop = task.config.loop
        is_cpu = task.mesh.devices.flat[0].platform == "cpu"
        self.scans = not is_cpu if loop == "auto" else loop == "scan"
        shapes = jax.eval_shape(lambda *data: steps.init(task, *data), *self._train())
        self.abstract = self._abstract(shapes)
        count = self._abstract(jnp.zeros((), jnp.int32))
        order = self._abstract(jax.eval_shape(self._order_shape, count))
        self._traced = self._trace(
            "train",
            self._advance_scan if self.scans else self._advance_step,
            *(self.abstract, order, *self._train(), *([count] if self.scans else [])),
            donate=0,
        )

    def _abstract(self, tree: Any) -> Any:
        sharding = self.task.replicated()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def _train(self) -> Any:
        data = self.task.dataset
        return self._abstract((data.train_images, data.train_labels))

    def _test(self) -> Any:
        data = self.task.dataset
        return self._abstract((data.test_images, data.test_labels))

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
        if self._is_compiled:
            return
        task, data, state = self.task, self.task.dataset, self.abstract
        place = task.replicated()
        self._train_data = jax.device_put((data.train_images, data.train_labels), place)
        self._test_data = jax.device_put((data.test_images, data.test_labels), place)
        count = self._abstract(jnp.zeros((), jnp.int32))

        self._order = self._compile(
            "order", lambda epoch: steps.epoch_order(task, epoch), count
        )
        self._advance = self._finish("train", self._traced)
        self._live = None
        if methods.trains_pruned(task.config):
            self._live = self._compile(
                "mask",
                lambda *arguments: methods.live_params(task.config, *arguments),
                *(state.params, state.opt_state),
            )
        sums = self._abstract(_no_eval_totals())
        self._eval = self._compile(
            "evaluate",
            lambda *arguments: steps.eval_step(task, *arguments),
            *((state.params, state.model_state), *self._test(), count, sums),
        )
        self._is_compiled = True

    def again(self, config: TrainConfig) -> "Programs":
        """Returns the same programs, not compiled again, for another run.

        Args:
          config: The other run's configuration. It differs in nothing that a program
            reads, as the folder, or the ticket and its sparsity: the state holds those.
        """
        other = copy.copy(self)
        other.task = dataclasses.replace(self.task, config=config)
        other.compile_seconds = {} if self._is_compiled else dict(self.compile_seconds)
        return other

    def _order_shape(self, epoch: jax.Array) -> jax.Array:
        return steps.epoch_order(self.task, epoch)

    def _advance_step(self, state: TrainState, *data: Any) -> tuple[TrainState, Totals]:
        state = steps.train_step(self.task, state, *data)
        return state, state.totals

    def _advance_scan(self, state: TrainState, *data: Any) -> tuple[TrainState, Totals]:
        state = steps.train_until(self.task, state, *data)
        return state, state.totals

    def init(self) -> TrainState:
        """Returns the state before the first step."""
        create = self._compile(
            "init", lambda *data: steps.init(self.task, *data), *self._train()
        )
        return create(*self._train_data)

    def place(self, snapshot: Any) -> TrainState:
        """Returns a restored snapshot as a state on the devices."""
        return jax.device_put(snapshot, self.task.replicated())

    def order(self, epoch: int) -> jax.Array:
        """Returns the order of the training images in an epoch."""
        return self._order(np.int32(epoch))

    def advance(
        self, state: TrainState, order: jax.Array, stop: int
    ) -> tuple[TrainState, Totals]:
        """Trains up to a step, or by one where `scans` is off; `state` is used up.

        Returns without waiting for the devices: the new state, and a copy of its totals
        that outlives it.
        """
        last = [np.int32(stop)] if self.scans else []
        return self._advance(state, order, *self._train_data, *last)

    def evaluate(self, state: TrainState) -> tuple[float, float]:
        """Returns the mean loss and the accuracy on the test set."""
        count = len(self.task.dataset.test_labels)
        totals = jax.device_put(_no_eval_totals(), self.task.replicated())
        params = state.params
        if self._live is not None:
            params = self._live(params, state.opt_state)
        variables = (params, state.model_state)
        for start in range(0, count, steps.eval_batch_size(self.task)):
            totals = self._eval(variables, *self._test_data, np.int32(start), totals)
        loss, correct = jax.device_get(totals)
        return float(loss) / count, int(correct) / count


def _no_eval_totals() -> EvalTotals:
    return EvalTotals(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
