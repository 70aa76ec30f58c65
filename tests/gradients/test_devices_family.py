"""The family on four devices: shared batches, and perturbations of their own."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mlir_contexts
import numpy as np
import pytest
from devices import flags
from family import ALL, METHODS, batch, losses_on, value_fn_of, weights
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES, EXAMPLES = 4, 32
SHARED = [name for name in ALL if name != "zeroth_order"]
SHARDED = ["esam", "looksam", "ssam-fisher", "zosam-guided"]
# ESAM takes its share of each device's examples.
# One for each kind of memory: of gradients, of none, of a direction, of guides.
OWN = ["fsam", "esam", "looksam", "zosam-guided"]
SYNCED = ["sam-2-steps", "gsam", "looksam", "aesam", "ssam-dynamic", "zosam-guided"]
CLIPPED = ["wsam"]
# One with a memory that learns from the gradient, and one without.
PLAIN = ["sam", "msam"]
# One with a backward pass in the ascent, and one without.
PARTS = ["sam", "zosam"]


def report() -> None:
    """Prints, as JSON, the largest difference of each comparison over two steps."""
    mlir_contexts.share()
    devices = Devices()
    found = {}
    for check, names in (
        (devices.sharded, SHARDED),
        (devices.own, OWN),
        (devices.synced, SYNCED),
        (devices.clipped, CLIPPED),
        (devices.runs, SHARED),
        (devices.plain, PLAIN),
        (devices.parts, PARTS),
    ):
        for name in names:
            try:
                found[f"{check.__name__} {name}"] = check(name)
            except Exception as error:
                found[f"{check.__name__} {name}"] = f"{type(error).__name__}: {error}"
    print(json.dumps({"devices": jax.device_count(), "found": found}))  # noqa: T201


class Devices:
    def __init__(self):
        auto = (AxisType.Auto,)
        self.mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=auto)
        self.params, self.data = weights(), batch(EXAMPLES)
        self.jit = functools.partial(
            jax.jit, compiler_options={"xla_backend_optimization_level": 0}
        )

    @functools.cache  # noqa: B019
    def jitted(self, name, **options):
        """As `step`, jitted: compiled once for all checks of the same shapes."""
        step, memory = self.step(name, **options)
        return self.jit(step), memory

    def step(self, name, **options):
        """`(params, memory, data, i) -> Estimate`, where `data` is what it sees."""
        method = METHODS[name]
        tx = method.make(rho=0.3, **options)

        def step(params, memory, data, i):
            return tx.gradient(
                value_fn_of(
                    method._replace(by_example=tx.by_example), losses_on(*data)
                ),
                params,
                key=jax.random.fold_in(jax.random.key(0), i),
                step=i,
                memory=memory,
            )

        return step, tx.init(self.params).memory

    def mapped(self, name, **options):
        step, memory = self.step(name, axis_name="data", **options)
        spread = jax.shard_map(
            step, mesh=self.mesh, in_specs=(P(), P(), P("data"), P()), out_specs=P()
        )
        return spread, memory

    def compare(self, first, second, memories, data, other_data):
        """The largest difference in two steps, the second at other parameters."""
        params, worst = self.params, 0.0
        first_memory, second_memory = memories
        for i in range(2):
            a = first(params, first_memory, data, jnp.int32(i))
            b = second(params, second_memory, other_data, i)
            first_memory, second_memory = a.memory, b.memory
            # All are of the order of one.
            left, right = (
                [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
                for tree in ((a.value, a.grad, a.memory), (b.value, b.grad, b.memory))
            )
            pairs = zip(left, right, strict=True)
            worst = max(worst, *(float(np.max(np.abs(x - y))) for x, y in pairs))
            params = jax.tree.map(lambda w, g: w - 0.1 * np.asarray(g), params, b.grad)
        return worst

    def sharded(self, name):
        """Under jit: a batch over four devices, and on one."""
        step, memory = self.jitted(name)
        spread = jax.device_put(self.data, NamedSharding(self.mesh, P("data")))
        return self.compare(step, step, (memory, memory), spread, self.data)

    def parts(self, name):
        """As `own`, and each device's ascent sees the front of its own examples."""
        return self.own(name, ascent_fraction=0.5)

    def own(self, name, **options):
        """Under shard_map: the mean of what every part of the batch finds alone."""
        spread, memory = self.mapped(name, **options)
        alone, _ = self.jitted(name, **options)
        parts = [np.asarray(x).reshape(DEVICES, -1, 4) for x in self.data]

        def apart(params, memory, data, i):
            seen = [
                alone(params, memory, tuple(x[k] for x in data), i)
                for k in range(DEVICES)
            ]
            return jax.tree.map(lambda *x: mean(x), *seen)

        return self.compare(self.jit(spread), apart, (memory, memory), self.data, parts)

    def clipped(self, name):
        """As `synced`, and the norm that is clipped is that of the whole batch."""
        return self.synced(name, max_norm=0.1)

    def synced(self, name, **options):
        """With one perturbation for all: the method on the whole batch."""
        spread, memory = self.mapped(name, sync_ascent=True, **options)
        whole, _ = self.jitted(name, **options)
        return self.compare(
            self.jit(spread), whole, (memory, memory), self.data, self.data
        )

    def plain(self, name):
        """Without a perturbation: two steps of the gradient of the whole batch."""
        spread, memory = self.mapped(name, when=lambda step: step < 0)
        whole, _ = self.step(name, when=lambda step: step < 0)
        return self.compare(
            self.jit(spread), self.jit(whole), (memory, memory), self.data, self.data
        )

    def runs(self, name):
        """Traced under shard_map, with a perturbation in every second step.

        Types that differ between branches are refused; what is refused without a
        branch is refused in one.
        """
        spread, memory = self.mapped(name, when=lambda step: step % 2 == 0)
        args = (self.params, memory, self.data, jnp.int32(0))
        out = jax.eval_shape(spread, *args)
        same = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), out.memory, memory
        )
        return 0.0 if all(jax.tree.leaves(same)) else 1.0


def mean(parts):
    if jnp.issubdtype(jnp.result_type(parts[0]), jnp.floating):
        return jnp.asarray(np.mean(np.asarray(parts, np.float64), axis=0), jnp.float32)
    return parts[0]


@functools.cache
def found() -> dict:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", "import test_devices_family as t; t.report()"],
        env=os.environ
        | {
            "XLA_FLAGS": flags(DEVICES),
            "JAX_PLATFORMS": "cpu",
            # Small programs too: the same on one device are made for several checks.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["devices"] == DEVICES
    return answer["found"]


# Sums over 32 examples in another order, and a step of 0.3 from their direction.
TOLERANCE = 1e-5


def check(comparison, name):
    difference = found()[f"{comparison} {name}"]
    assert not isinstance(difference, str), difference
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", SHARDED)
def test_a_batch_over_four_devices_is_a_batch_on_one(name):
    check("sharded", name)


@pytest.mark.parametrize("name", OWN)
def test_each_device_has_the_perturbation_of_its_part(name):
    check("own", name)


@pytest.mark.parametrize("name", PARTS)
def test_the_ascent_of_each_device_sees_its_own_examples(name):
    check("parts", name)


@pytest.mark.parametrize("name", SYNCED)
def test_one_ascent_for_all_is_the_method_on_the_whole_batch(name):
    check("synced", name)


@pytest.mark.parametrize("name", CLIPPED)
def test_gradients_are_clipped_to_a_norm_of_the_whole_batch(name):
    check("clipped", name)


@pytest.mark.parametrize("name", SHARED)
def test_every_method_runs_under_shard_map(name):
    check("runs", name)


@pytest.mark.parametrize("name", PLAIN)
def test_a_step_without_a_perturbation_averages_the_gradient(name):
    check("plain", name)
