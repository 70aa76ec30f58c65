import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax import tree

TREE = {"b": jnp.ones((2, 3)), "a": [jnp.zeros(4), jnp.full((1, 1), 2.0)]}


@pytest.mark.quick
def test_paths_and_size_follow_the_flattening_order():
    assert tree.paths(TREE) == ["a/0", "a/1", "b"]
    assert tree.size(TREE) == 11


def test_only_the_value_of_an_nnx_variable_is_left_out_of_a_path():
    assert tree.paths({"attention": {"value": 1, "query": 2}}) == [
        "attention/query",
        "attention/value",
    ]


def test_a_scalar_false_is_no_mask():
    with pytest.raises(ValueError, match="b is a scalar False"):
        tree.check_masks({"b": False}, {"b": jnp.ones(2)})


def test_a_draw_depends_on_the_place_and_the_shape_of_its_leaf_alone():
    key, large = jax.random.key(4), (3, 2**15)
    drawn = tree.normal_like(key, {**TREE, "c": jnp.zeros(large), "d": jnp.zeros(2)})
    keys = [jax.random.fold_in(key, i) for i in range(5)]
    front = [jax.random.normal(k, (1024,)) for k in keys]
    np.testing.assert_array_equal(drawn["a"][0], front[0][:4])
    np.testing.assert_array_equal(drawn["a"][1], front[1][:1].reshape(1, 1))
    np.testing.assert_array_equal(drawn["b"], front[2][:6].reshape(2, 3))
    np.testing.assert_array_equal(drawn["c"], jax.random.normal(keys[3], large))
    np.testing.assert_array_equal(drawn["d"], front[4][:2])
    other = tree.normal_like(key, {**TREE, "c": jnp.zeros(7)})
    np.testing.assert_array_equal(other["b"], drawn["b"])
    long = tree.normal_like(key, jnp.zeros(1500))
    np.testing.assert_array_equal(long, jax.random.normal(keys[0], (2048,))[:1500])


def test_the_draw_is_standard_normal():
    shapes = [jnp.zeros(60_000), jnp.zeros(60_000), jnp.zeros((2, 40_000))]
    drawn = np.concatenate(
        [np.ravel(x) for x in tree.normal_like(jax.random.key(0), shapes)]
    )
    assert abs(drawn.mean()) < 5 / np.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / len(drawn))
    pieces = drawn.reshape(10, -1)
    correlation = np.corrcoef(pieces) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(pieces.shape[1])


@pytest.mark.quick
def test_norm_is_global_and_float32_for_bfloat16():
    x = {"a": jnp.full(10_000, 0.01, jnp.bfloat16), "b": jnp.full(3, 2.0)}
    exact = np.sqrt(10_000 * float(jnp.bfloat16(0.01)) ** 2 + 12)
    assert tree.norm(x).dtype == jnp.float32
    np.testing.assert_allclose(tree.norm(x), exact, rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, jnp.nan, jnp.inf])
def test_normalize_gives_zeros_where_there_is_no_direction(bad):
    unit, length = tree.normalize({"a": jnp.full(3, bad)})
    np.testing.assert_array_equal(unit["a"], np.zeros(3))
    np.testing.assert_array_equal(length, np.sqrt(3 * bad**2))


def test_add_scaled_rounds_once_to_the_first_dtype():
    x = jnp.asarray([1.0, 256.0], jnp.bfloat16)
    y = jnp.asarray([1 / 128, 1.0], jnp.float32)
    total = tree.add_scaled(x, 3.0, y)
    assert total.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        total, jnp.asarray([1 + 3 / 128, 259.0]).astype(jnp.bfloat16)
    )


@pytest.mark.quick
def test_mask_leaves_dense_leaves_and_needs_no_masks():
    params = {"a": jnp.arange(3.0), "b": jnp.ones(2)}
    masked = tree.mask(params, {"a": jnp.array([True, False, True]), "b": True})
    np.testing.assert_array_equal(masked["a"], [0, 0, 2])
    assert masked["b"] is params["b"]
    assert tree.mask(params, None) is params


def test_a_masked_leaf_keeps_its_dtype_strong_or_weak():
    weak = jax.lax.full((2,), 1.5)
    assert weak.weak_type
    dtypes = (jnp.float32, jnp.bfloat16, jnp.int8, bool)
    for leaf in (weak, *(jnp.ones(2, dtype) for dtype in dtypes)):
        masked = tree.mask(leaf, jnp.asarray([True, False]))
        assert (masked.dtype, masked.weak_type) == (leaf.dtype, leaf.weak_type)
        np.testing.assert_array_equal(masked, [leaf[0], 0])


def test_a_mask_outside_of_jit_is_one_program_for_each_shape(caplog):
    # From NumPy, since ones and zeros of a shape are of one program.
    x = jnp.asarray(np.ones((7, 13), np.float32))
    m = jnp.asarray(np.ones((7, 13), bool))
    tree.mask(x[:, :5], m[:, :5])  # what does not depend on the shape
    with jax.log_compiles():
        tree.mask(x, m)
    compiled = [line for line in caplog.messages if line.startswith("Compiling")]
    assert len(compiled) == 1, compiled


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_either_is_where_bit_by_bit_and_has_its_derivative(dtype):
    odd = [0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, -np.nan, 1e-40]
    x, y = (a.reshape(-1) for a in np.meshgrid(odd, odd))
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    mask = jnp.arange(x.size) % 3 == 0
    bits = f"uint{8 * x.dtype.itemsize}"
    np.testing.assert_array_equal(
        np.asarray(tree.either(mask, x, y)).view(bits),
        np.asarray(jnp.where(mask, x, y)).view(bits),
    )
    slopes = jax.grad(lambda x, y: jnp.sum(tree.either(mask, x, y)), (0, 1))(x, y)
    np.testing.assert_array_equal(slopes[0], mask)
    np.testing.assert_array_equal(slopes[1], ~mask)


SCALES = [1e-30, 1e-20, 1.0, 1e20, 1e30]


@pytest.mark.parametrize("scale", SCALES)
def test_norms_and_angles_do_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5)).astype(np.float32)
    # A power of two, so that float32 scales exactly.
    unit = np.float32(2.0 ** np.floor(np.log2(scale)))
    a, b = {"p": x[:2] * unit, "q": x[2:] * unit}, {"p": y[:2], "q": y[2:]}
    small, large = {"p": x[:2], "q": x[2:]}, {"p": y[:2] * unit, "q": y[2:] * unit}
    assert tree.norm(a) == tree.norm(small) * unit
    assert tree.cosine(a, b) == tree.cosine(small, b) == tree.cosine(small, large)
    assert float(tree.cosine(a, a)) <= 1
    assert tree.coefficient(a, b) == tree.coefficient(small, b) * unit
    assert tree.coefficient(b, a) == tree.coefficient(b, small) / unit
    assert tree.vdot(a, b) == tree.vdot(small, b) * unit
    direction, length = tree.normalize(a)
    assert length == tree.norm(small) * unit
    jax.tree.map(np.testing.assert_array_equal, direction, tree.normalize(small)[0])
    exact = np.linalg.norm(x.astype(np.float64))
    np.testing.assert_allclose(float(length) / unit, exact, rtol=1e-6)


def test_a_length_and_a_cosine_of_one_read_are_those_of_two():
    """Leaves of zeros and without entries count for nothing."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 40)).astype(np.float32)
    a = {"p": x[:7], "q": x[7:], "none": jnp.zeros((0, 3)), "zero": jnp.zeros(2)}
    b = {"p": y[:7], "q": y[7:], "none": jnp.zeros((0, 3)), "zero": jnp.ones(2)}
    length, cosine = tree.length_and_cosine(a, b)
    assert length == tree.norm(a)
    assert cosine == tree.cosine(a, b)
    wide, other = x.astype(np.float64), np.append(y.astype(np.float64), [1, 1])
    assert float(length) == pytest.approx(np.linalg.norm(wide), rel=1e-6)
    exact = wide @ other[:-2] / np.linalg.norm(wide) / np.linalg.norm(other)
    assert float(cosine) == pytest.approx(exact, rel=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, a)
    assert [float(v) for v in tree.length_and_cosine(nothing, b)] == [0, 0]
    assert tree.norm({"none": jnp.zeros(0)}) == 0


def test_the_derivative_of_a_norm_is_finite_at_zero():
    x = {"zero": jnp.zeros(2), "w": jnp.array([3.0, 4.0])}
    grad = jax.grad(tree.norm)(x)
    np.testing.assert_allclose(grad["w"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(grad["zero"], [0, 0])
    np.testing.assert_array_equal(jax.grad(tree.norm)(jnp.zeros(3)), np.zeros(3))
    unit = jax.jacobian(lambda x: tree.normalize(x)[0]["w"])(x)
    # (I - u u') / |w|
    expected = (np.eye(2) - np.outer([0.6, 0.8], [0.6, 0.8])) / 5
    np.testing.assert_allclose(unit["w"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(unit["zero"], np.zeros((2, 2)))
