"""The seed is an argument of the compiled programs, which are those of every seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.train import step as steps
from zosam_jax.train.compiled_run import CompiledRun

SEEDS = 3, 2**31 - 1
# One change of the topology, at step 3 of 8.
RUN = {"gradient": "zosam", "method": "rigl", "epochs": 2}


def prepare(**fields) -> list[CompiledRun]:
    """Returns the programs of two seeds, traced."""
    configs = (tiny_run.config("unused", **fields, seed=seed) for seed in SEEDS)
    return [tiny_run.prepare(config) for config in configs]


@pytest.fixture(scope="module")
def runs() -> list[CompiledRun]:
    return prepare(**RUN)


@pytest.fixture(scope="module")
def states(runs):
    """The states of both seeds before the first step and after four."""
    return [after_four_steps(compiled) for compiled in runs]


def after_four_steps(compiled):
    compiled.compile()
    state = compiled.init()
    first = jax.tree.map(jnp.copy, state)
    batch = next(compiled.batches(0))
    for step in range(4):
        state, _ = compiled.advance(state, batch, step + 1)
    return first, state


def texts(compiled: CompiledRun) -> list[str]:
    """Returns the text of the programs that draw at random."""
    order = compiled._trace(compiled._epoch_order, np.int32(0), np.int32(0))
    programs = compiled._first_traced, compiled._train_traced, order
    return [traced.program.lower().as_text() for traced in programs]


def test_the_programs_of_two_seeds_have_one_text(runs):
    first, second = map(texts, runs)
    assert first == second


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "snip", "gradient": "gsam", "gradient_options": ("rho_min=0.01",)},
        {"method": "set", "gradient": "zeroth_order", "loop": "scan"},
    ],
    ids=lambda fields: fields["method"],
)
def test_so_do_those_of_criteria_tied_radii_and_compiled_loops(fields):
    first, second = map(texts, prepare(**fields))
    assert first == second


def test_a_seed_as_data_draws_what_a_constant_seed_draws(runs, states):
    """Bit for bit, over a change of the topology."""
    experiment = runs[0].experiment
    begin = jax.jit(lambda *examples: steps.init(experiment, *examples))
    constant = begin(*tiny_run.raw(experiment, jnp.int32(0)))
    first, last = states[0]
    tiny_run.assert_same(first, constant)
    advance = tiny_run.advance(experiment)
    for _ in range(4):
        constant = advance(constant)
    tiny_run.assert_same(last, constant)


def test_several_seeds_train_in_one_program(runs, states):
    """`jax.vmap` over seeds, against the run of each seed."""
    experiment = runs[0].experiment

    def step(seed, state):
        return tiny_run.next_state(experiment.with_seed(seed), state)

    fast = {"xla_backend_optimization_level": 0}
    advance = jax.jit(jax.vmap(step), compiler_options=fast)
    state = jax.tree.map(lambda *x: jnp.stack(x), *(first for first, _ in states))
    for _ in range(4):
        state = advance(jnp.array(SEEDS), state)
    for i, (_, expected) in enumerate(states):
        found = jax.tree.map(lambda x, i=i: x[i], state)
        tiny_run.assert_same(*map(masks, (found, expected)))
        pairs = zip(
            *(jax.tree.leaves(s.params) for s in (found, expected)), strict=True
        )
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def masks(state):
    return zs.sparsity.masks(state.opt_state)


@pytest.fixture
def compilations():
    """Events of JAX's cache on disk, which takes all programs here."""
    setting = "jax_persistent_cache_min_compile_time_secs"
    before, events = jax.config.values[setting], []

    def listen(event, **_):
        events.append(event.rpartition("/")[2])

    jax.config.update(setting, 0.0)
    jax.monitoring.register_event_listener(listen)
    yield events
    jax.monitoring.unregister_event_listener(listen)
    jax.config.update(setting, before)


def test_another_seed_compiles_nothing(tmp_path, compilations):
    """All programs of the second run come from JAX's cache on disk."""
    tiny_run.train(tmp_path / "a", **RUN, seed=0)
    compilations.clear()
    tiny_run.train(tmp_path / "b", **RUN, seed=1)
    programs = compilations.count("compile_requests_use_cache")
    assert programs >= 4  # the first state, the order, a step, the evaluation
    assert compilations.count("cache_hits") == programs
    assert compilations.count("cache_misses") == 0
    first, second = (tiny_run.records(tmp_path / run)[0]["loss"] for run in "ab")
    assert first != second
