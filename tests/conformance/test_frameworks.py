"""Every sparse method on the parameters of every framework, in its own loop.

One small network, with the same weights and data, as each framework writes it. The
leaves come in the same order everywhere (Equinox apart), so that the trainings must
agree with that of a plain dict, and the updates compile to one program.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from flax import nnx

import zosam_jax as zs

STEPS = 12
KERNELS = {(6, 10): 30, (10, 4): 20}
"""Live weights at the end, by the kernel's shape, (in, out)."""


def weights():
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(6, 10)) / 2, rng.normal(size=(10, 4)) / 3
    return [jnp.asarray(x, jnp.float32) for x in (np.zeros(10), first, [0] * 4, last)]


X = jax.random.normal(jax.random.key(1), (32, 6))
Y = jnp.argmax(X[:, :4] + X[:, 2:], axis=1)


def objective(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()


def hidden(b1, w1, b2, w2):
    return jnp.tanh(X @ w1 + b1) @ w2 + b2


class Layer(NamedTuple):
    bias: Any
    kernel: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    first: Layer
    last: Layer


def plain(structure):
    """`(params, loss)` of a tree that is only a container of four arrays."""
    params = jax.tree.unflatten(jax.tree.structure(structure), weights())
    return params, lambda p: objective(hidden(*jax.tree.leaves(p)))


def linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(10)(x))
            return nn.Dense(4)(x)

    model = Model()
    start = model.init(jax.random.key(0), X)
    params = jax.tree.unflatten(jax.tree.structure(start), weights())
    return params, lambda p: objective(model.apply(p, X))


class NNXModel(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(6, 10, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(10, 4, rngs=nnx.Rngs(0))
        state = nnx.state(self, nnx.Param)
        nnx.update(self, jax.tree.unflatten(jax.tree.structure(state), weights()))

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


def nnx_state():
    graph, params = nnx.split(NNXModel(), nnx.Param)
    return params, lambda p: objective(nnx.merge(graph, p)(X))


def equinox():
    """Its kernels are (out, in), before the bias, and its functions are None."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(6, 4, 10, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    b1, w1, b2, w2 = weights()
    treedef = jax.tree.structure(params)
    params = jax.tree.unflatten(treedef, [w1.T, b1, w2.T, b2])
    return params, lambda p: objective(jax.vmap(eqx.combine(p, rest))(X))


def haiku():
    hk = pytest.importorskip("haiku")
    model = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([10, 4], activation=jnp.tanh)(x))
    )
    start = model.init(jax.random.key(0), X)
    params = jax.tree.unflatten(jax.tree.structure(start), weights())
    return params, lambda p: objective(model.apply(p, X))


FRAMEWORKS = {
    "dict": lambda: plain({"a": {"b": 0, "w": 0}, "c": {"b": 0, "w": 0}}),
    "tuple": lambda: plain(((0, 0), [0, 0])),
    "NamedTuple": lambda: plain({"a": Layer(0, 0), "c": Layer(0, 0)}),
    "dataclass": lambda: plain(Net(Layer(0, 0), Layer(0, 0))),
    "linen": linen,
    "nnx.state": nnx_state,
    "equinox": equinox,
    "haiku": haiku,
}


@functools.cache
def framework(name):
    """`(params, jitted value_and_grad)`: the network is compiled once."""
    params, loss = FRAMEWORKS[name]()
    return params, jax.jit(jax.value_and_grad(loss))


@functools.cache
def trained(name, method):
    """`(params, masks, losses)`: those of the network, masked, and all the losses."""
    params, value_and_grad = framework(name)
    tx = zs.sparsify(
        optax.sgd(0.5, momentum=0.9),
        zoo.METHODS[method](budget="uniform"),
        packed=True,
    )
    state = tx.init(params)
    treedef = jax.tree.structure((params, state, params))

    @jax.jit
    def step(leaves):
        # Of leaves alone, so that all frameworks compile to one and the same program.
        grads, state, params = jax.tree.unflatten(treedef, leaves)
        updates, state = tx.update(grads, state, params)
        return jax.tree.leaves((updates, state, optax.apply_updates(params, updates)))

    if method != "ste":
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    losses = []
    for _ in range(STEPS):
        network = params
        if method == "ste":
            network = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        value, grads = value_and_grad(network)
        leaves = step(jax.tree.leaves((grads, state, params)))
        _, state, params = jax.tree.unflatten(treedef, leaves)
        losses.append(float(value))
    masks = zs.sparsity.masks(state)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    applied = zs.sparsity.apply_masks(params, masks)
    if method != "ste":
        jax.tree.map(np.testing.assert_array_equal, params, applied)
    return jax.tree.leaves(applied), jax.tree.leaves(masks), losses


def check(params, masks, losses, method):
    assert losses[-1] < 0.8 * losses[0]
    counts = {}
    for w, m in zip(params, masks, strict=True):
        if w.ndim == 1:
            assert m.shape == ()
            assert bool(m)
            continue
        assert m.shape == w.shape
        assert np.all(np.asarray(w)[~np.asarray(m)] == 0)
        counts[w.shape if w.shape in KERNELS else w.shape[::-1]] = int(m.sum())
    if method == "dsr":
        # Its weights move between the layers.
        assert sum(counts.values()) == sum(KERNELS.values())
    else:
        assert counts == KERNELS


def agree(params, masks, method):
    expected, expected_masks, _ = trained("dict", method)
    jax.tree.map(np.testing.assert_array_equal, masks, expected_masks)
    for w, e in zip(params, expected, strict=True):
        # Twelve steps of float32; the frameworks' own products round alike.
        np.testing.assert_allclose(w, e, rtol=1e-5, atol=1e-6)


# Structured methods read the layout of kernels, and their own tests cover the layouts.
UNSTRUCTURED = [
    m for m in zoo.METHODS if m not in ("srigl", "nm", "units", "chex", "chase")
]


# Containers differ in the paths of their leaves alone, which one function reads for all
# methods: two methods meet all of them, and each of the others one.
CONTAINERS = ("tuple", "NamedTuple", "dataclass")
PAIRS = [(n, m) for n in FRAMEWORKS for m in UNSTRUCTURED if n not in CONTAINERS]
PAIRS += [(n, m) for n in CONTAINERS for m in ("rigl", "mest")]
OTHERS = [m for m in UNSTRUCTURED if m not in ("rigl", "mest")]
PAIRS += [(CONTAINERS[i % len(CONTAINERS)], m) for i, m in enumerate(OTHERS)]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_method_trains_every_tree(name, method):
    params, masks, losses = trained(name, method)
    check(params, masks, losses, method)
    if name != "equinox":
        agree(params, masks, method)


@pytest.mark.parametrize("method", UNSTRUCTURED)
def test_nnx_optimizer(method):
    """NNX's own training step; it keeps the packed masks in variables."""
    model = NNXModel()
    tx = zs.sparsify(
        optax.sgd(0.5, momentum=0.9),
        zoo.METHODS[method](budget="uniform"),
        gradient=zs.backprop(),
        packed=True,
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    held = lambda: zs.sparsity.masks(nnx.as_pure(optimizer.opt_state))  # noqa: E731
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    if method != "ste":
        nnx.update(model, zs.sparsity.apply_masks(params, held()))

    @nnx.jit
    def step(model, optimizer):
        graph, params = nnx.split(model, nnx.Param)

        def value_fn(p):
            return objective(nnx.merge(graph, p, copy=True)(X))

        optimizer.update(model, jax.tree.map(jnp.zeros_like, params), value_fn=value_fn)
        return zs.estimate(nnx.as_pure(optimizer.opt_state)).value

    losses = [float(step(model, optimizer)) for _ in range(STEPS)]
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    applied = zs.sparsity.apply_masks(params, held())
    if method != "ste":
        jax.tree.map(np.testing.assert_array_equal, params, applied)
    leaves, masks = jax.tree.leaves(applied), jax.tree.leaves(held())
    check(leaves, masks, losses, method)
    agree(leaves, masks, method)


def test_equinox_in_its_own_idiom():
    """Filtered gradients and updates; the model keeps its functions."""
    eqx = pytest.importorskip("equinox")
    params, _ = framework("equinox")
    model = eqx.nn.MLP(6, 4, 10, 1, activation=jnp.tanh, key=jax.random.key(0))
    model = eqx.combine(params, model)
    arrays = functools.partial(eqx.filter, filter_spec=eqx.is_inexact_array)
    tx = zs.sparsify(
        optax.sgd(0.5, momentum=0.9), zoo.METHODS["rigl"](budget="uniform"), packed=True
    )
    state = tx.init(arrays(model))
    masks = zs.sparsity.masks(state)
    model = eqx.combine(zs.sparsity.apply_masks(arrays(model), masks), model)

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda m: objective(jax.vmap(m)(X)))(model)
        updates, state = tx.update(grads, state, arrays(model))
        return eqx.apply_updates(model, updates), state

    for _ in range(STEPS):
        model, state = step(model, state)
    expected, _, _ = trained("equinox", "rigl")
    for w, e in zip(jax.tree.leaves(arrays(model)), expected, strict=True):
        np.testing.assert_allclose(w, e, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"params are eqx.filter\(model"):
        zs.sparsity.apply_masks(model, zs.sparsity.masks(state))
    with pytest.raises(ValueError, match=r"params = eqx.filter\(model"):
        tx.update(arrays(model), state, model)


def test_biases_and_norms_with_axes_of_one_are_dense():
    """Equinox's biases of convolutions are (out, 1, 1), Haiku's norms (1, 1, 1, c)."""
    eqx, hk = pytest.importorskip("equinox"), pytest.importorskip("haiku")
    conv = eqx.filter_eval_shape(eqx.nn.Conv2d, 3, 4, 3, key=jax.random.key(0))
    conv = jax.tree.map(lambda x: jnp.ones(x.shape), conv)
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5))
    masks = zs.sparsity.masks(tx.init(eqx.filter(conv, eqx.is_inexact_array)))
    assert masks.bias.shape == ()
    assert int(masks.weight.sum()) == 54

    def net(x):
        return hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), True)

    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    shapes, _ = jax.eval_shape(
        hk.transform_with_state(net).init, jax.random.key(0), images
    )
    params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5))
    masks = zs.sparsity.masks(tx.init(params))
    assert masks["batch_norm"]["scale"].shape == ()
    assert int(masks["conv2_d"]["w"].sum()) == 54
