"""Compiles and times steps of the version of zosam_jax that stands first on the path.

`benchmarks.compare` runs this file in a process of each version. It is this tool's file
in both, and so is all of `benchmarks`: the versions differ in `zosam_jax` alone. The
argument names the network. A request is a line of JSON, `[what, name]`, and so is its
answer.
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the folder of this tool stands on the path, which has a `zosam_jax` too.
import zosam_jax as zs

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import optax

from benchmarks import throughput

BATCH = 128
LEAST_SECONDS, LEAST_CALLS = 0.2, 3
"""How long a step is called for one measurement."""

GRADIENTS = {"SGD": "backprop", "SAM": "sam", "ZO-SAM": "zosam"}
UPDATES = {"RigL, ordinary update": "ordinary", "RigL, new masks": "changing"}


class Steps:
    """The steps of one version, compiled when they are asked for."""

    def __init__(self, model: str):
        self.problem = throughput.Problem(model, 1.0, BATCH)
        self.calls: dict[str, Callable[[], Any]] = {}

    def compile(self, name: str) -> dict[str, float]:
        """Returns CPU seconds and instructions of a program that is compiled anew.

        Args:
          name: A key of `GRADIENTS` or `UPDATES`.
        """
        start, instructions = time.process_time(), 0
        if name in GRADIENTS:
            step = self._training_step(name)
            self.calls[name] = lambda: step.run(step.state)
            instructions = (step.run.as_text() or "").count(" = ")
        else:
            self.calls[name] = self._updates[UPDATES[name]]
        taken = {"seconds": time.process_time() - start, "instructions": instructions}
        jax.block_until_ready(self.calls[name]())
        return taken

    def run(self, name: str) -> dict[str, float]:
        """Returns the median seconds of a call.

        Args:
          name: A step that is compiled.
        """
        times: list[float] = []
        while sum(times) < LEAST_SECONDS or len(times) < LEAST_CALLS:
            start = time.perf_counter()
            jax.block_until_ready(self.calls[name]())
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times)}

    @functools.cached_property
    def _updates(self) -> dict[str, Callable[[], Any]]:
        return throughput.topology_updates(self.problem.params)

    def _training_step(self, name: str) -> throughput.Step:
        params, model_state = self.problem.params, self.problem.model_state
        make = getattr(zs, GRADIENTS[name])
        gradient = make(has_aux=True, aux_like=model_state)
        tx = optax.chain(gradient, optax.sgd(0.1, momentum=0.9))
        state = (params, model_state, tx.init(params))
        return throughput.compile_step(self.problem.step(tx), state)


def main() -> None:
    """Answers the requests of the standard input."""
    answers, sys.stdout = sys.stdout, sys.stderr
    jax.config.update("jax_enable_compilation_cache", False)
    steps = Steps(sys.argv[1])
    actions = {"compile": steps.compile, "run": steps.run}
    for line in sys.stdin:
        what, name = json.loads(line)
        print(json.dumps(actions[what](name)), file=answers, flush=True)


if __name__ == "__main__":
    main()
