"""Eigenvalues, spectral density and trace of the Hessian, without the matrix."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import _check
from zosam_jax._types import Key, Masks, Params, PyTree
from zosam_jax.analysis.lanczos import Lanczos, lanczos
from zosam_jax.analysis.objective import BatchLoss, Objective


class Eigenpairs(NamedTuple):
    """Eigenvalues of the Hessian at one end of its spectrum.

    Attributes:
      values: Eigenvalues, the outermost first, `[k]`, float64.
      vectors: Their eigenvectors, trees like the parameters, of length 1.
      residuals: |Hv - value v| of each: an eigenvalue of the Hessian is at most that
        far away.
      products: Number of Hessian-vector products, each over all batches.
    """

    values: np.ndarray
    vectors: list[Params]
    residuals: np.ndarray
    products: int


class SpectralDensity(NamedTuple):
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    Attributes:
      grid: Eigenvalues at which the density is given, `[n]`, ascending.
      density: Density there, of integral 1.
      nodes: Eigenvalues of the tridiagonal matrices, `[probes, steps]`.
      weights: Their weights, which sum to 1 for each probe.
      width: Standard deviation of the Gaussian that smooths the density.
      dimension: Number of live weights, d.
    """

    grid: np.ndarray
    density: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    width: float
    dimension: int


class Trace(NamedTuple):
    """An estimate of the trace of the Hessian.

    Attributes:
      value: The estimate.
      error: Its standard error; 0 where it is exact.
      dimension: Number of live weights, d. `value / dimension` is the mean eigenvalue.
      products: Number of Hessian-vector products, each over all batches.
    """

    value: float
    error: float
    dimension: int
    products: int


def hessian_eigenvalues(
    value_fn: BatchLoss,
    params: Params,
    key: Key,
    *,
    k: int = 1,
    which: str = "largest",
    tolerance: float = 1e-3,
    max_products: int = 100,
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> Eigenpairs:
    r"""Returns the largest or smallest eigenvalues of the Hessian on the mask.

    Lanczos' method on :math:`P H P`, where :math:`P` keeps the live weights, with full
    reorthogonalisation (Golub and Van Loan, Matrix Computations, chapter 10). It stops
    where the residual of each wanted pair is at most `tolerance` times the largest
    eigenvalue in size. An eigenvalue that repeats itself is found once, unless the
    operator has few different ones.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for the start vector.
      k: Number of eigenvalues.
      which: "largest" or "smallest", by sign: the smallest is the most negative.
      tolerance: Residual that is allowed, relative to the largest eigenvalue in size.
      max_products: Largest number of Hessian-vector products. The residuals say how
        far the method came.
      masks: Mask tree: the Hessian is that of the live weights. None: of all weights.
      batches: Batches of one shape; the loss is its mean over them. `[batch]` gives the
        Hessian of a mini-batch.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> def loss(w):
      ...     return 3 * w[0] ** 2 + w[1] ** 2
      >>> key = jax.random.key(0)
      >>> found = zs.analysis.hessian_eigenvalues(loss, jnp.ones(2), key, k=2)
      >>> print(found.values.round(3), found.products)
      [6. 2.] 2
    """
    _check.one_of("which", which, ("largest", "smallest"))
    _check.number("tolerance", tolerance, above=0)
    objective = Objective(value_fn, params, masks, batches)
    _check.whole("k", k, most=objective.size)
    _check.whole("max_products", max_products, least=k)
    end = slice(None, None, -1) if which == "largest" else slice(None)

    def outermost(found: Lanczos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values, columns = found.ritz()
        residuals = np.abs(found.coupling[-1] * columns[-1])
        return values[end][:k], columns[:, end][:, :k], residuals[end][:k]

    def done(found: Lanczos) -> bool:
        if len(found.diagonal) < k:
            return False
        largest = np.max(np.abs(found.ritz()[0]))
        return bool(np.max(outermost(found)[2]) <= tolerance * largest)

    start, rng = _draws(key, objective)
    found = lanczos(objective.product, start(), max_products, rng, done)
    values, columns, residuals = outermost(found)
    vectors = [objective.tree(found.basis.T @ column) for column in columns.T]
    return Eigenpairs(values, vectors, residuals, len(found.diagonal))


def spectral_density(
    value_fn: BatchLoss,
    params: Params,
    key: Key,
    *,
    steps: int = 60,
    probes: int = 2,
    width: float = 0.01,
    points: int = 1000,
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> SpectralDensity:
    r"""Returns the density of the Hessian's eigenvalues on the mask.

    Stochastic Lanczos quadrature (Ghorbani, Krishnan and Xiao, 2019, arXiv:1901.10159):

    .. math::
      \phi_\sigma(t) = \frac{1}{n} \sum_{i=1}^n \sum_{l=1}^m
      \omega_l^{(i)} \, N(t;\ \theta_l^{(i)}, \sigma^2), \qquad
      \omega_l = (e_1^\top s_l)^2

    with the eigenvalues :math:`\theta_l` and eigenvectors :math:`s_l` of the
    tridiagonal matrix of m Lanczos steps from a random unit vector.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for the start vectors.
      steps: m, Hessian-vector products of one start vector.
      probes: n, number of start vectors.
      width: The Gaussian's standard deviation, relative to the range of eigenvalues.
      points: Number of grid points.
      masks: Mask tree: the Hessian is that of the live weights. None: of all weights.
      batches: Batches of one shape; the loss is its mean over them.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> def loss(w):
      ...     return 3 * w[0] ** 2 + w[1] ** 2
      >>> found = zs.analysis.spectral_density(loss, jnp.ones(2), jax.random.key(0))
      >>> print(found.nodes.round(3)[0])
      [2. 6.]
    """
    for name, value in (("steps", steps), ("probes", probes), ("points", points)):
        _check.whole(name, value)
    _check.number("width", width, above=0)
    objective = Objective(value_fn, params, masks, batches)
    start, rng = _draws(key, objective)
    runs = [lanczos(objective.product, start(), steps, rng) for _ in range(probes)]
    ritz = [run.ritz() for run in runs]
    nodes = np.stack([values for values, _ in ritz])
    weights = np.stack([np.square(columns[0]) for _, columns in ritz])
    low, high = float(nodes.min()), float(nodes.max())
    # The range is 0 where the Hessian is a multiple of the identity.
    sigma = width * ((high - low) or abs(high) or 1.0)
    grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    density = gaussian_mixture(grid, nodes, weights / probes, sigma)
    return SpectralDensity(grid, density, nodes, weights, sigma, objective.size)


def gaussian_mixture(
    grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, width: float
) -> np.ndarray:
    """Returns a weighted sum of Gaussians on a grid.

    Args:
      grid: Points, `[n]`.
      nodes: Means of the Gaussians, of any shape.
      weights: Their weights, in the shape of `nodes`.
      width: Their standard deviation.
    """
    z = (grid - nodes.reshape(-1, 1)) / width
    kernels = np.exp(-np.square(z) / 2) / (width * np.sqrt(2 * np.pi))
    return weights.reshape(-1) @ kernels


def hessian_trace(
    value_fn: BatchLoss,
    params: Params,
    key: Key,
    *,
    products: int = 60,
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> Trace:
    r"""Returns the trace of the Hessian on the mask, by Hutch++.

    .. math::
      \mathrm{tr}\,H \approx \mathrm{tr}(Q^\top H Q) + \frac{1}{n} \sum_{i=1}^n
      g_i^\top (I - QQ^\top) H (I - QQ^\top) g_i

    with an orthonormal basis Q of the range of HS for a random sign matrix S of n
    columns, and random signs :math:`g_i` (Meyer, Musco, Musco and Woodruff, 2021,
    arXiv:2010.09649). n is a third of the products. If as many products are allowed as
    there are live weights, the trace is exact, column by column.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for the signs.
      products: Number of Hessian-vector products, at least 6.
      masks: Mask tree: the Hessian is that of the live weights. None: of all weights.
      batches: Batches of one shape; the loss is its mean over them.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> def loss(w):
      ...     return 3 * w[0] ** 2 + w[1] ** 2
      >>> found = zs.analysis.hessian_trace(loss, jnp.ones(2), jax.random.key(0))
      >>> print(found.value, found.error)
      8.0 0.0
    """
    _check.whole("products", products, least=6)
    objective = Objective(value_fn, params, masks, batches)
    size, dtype = objective.size, objective.dtype
    if products >= size:
        columns = np.eye(size, dtype=dtype)
        entries = [objective.product(column)[i] for i, column in enumerate(columns)]
        return Trace(float(np.sum(entries, dtype=np.float64)), 0.0, size, size)
    _, rng = _draws(key, objective)
    third = products // 3

    def images(vectors: np.ndarray) -> np.ndarray:
        return np.stack([objective.product(v) for v in vectors])

    def signs() -> np.ndarray:
        return rng.choice(np.asarray([-1, 1], dtype), (third, size))

    basis = np.linalg.qr(images(signs()).T)[0].T
    captured = np.einsum("ij,ij", basis, images(basis), dtype=np.float64)
    probes = signs()
    for _ in range(2):
        probes = probes - (probes @ basis.T) @ basis
    terms = np.einsum("ij,ij->i", probes, images(probes), dtype=np.float64)
    error = float(np.std(terms, ddof=1) / np.sqrt(third))
    return Trace(float(captured + np.mean(terms)), error, size, 3 * third)


def _draws(
    key: Key, objective: Objective
) -> tuple[Callable[[], np.ndarray], np.random.Generator]:
    """Returns a function that draws a normal vector, and the generator behind it."""
    rng = generator(key)
    return lambda: rng.standard_normal(objective.size).astype(objective.dtype), rng


def generator(key: Key) -> np.random.Generator:
    """Returns NumPy's generator, seeded by a PRNG key of JAX."""
    _check.key(key)
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
