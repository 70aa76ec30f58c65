"""Lanczos' method with full reorthogonalisation, for one symmetric operator."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Lanczos(NamedTuple):
    """What some steps of Lanczos' method found of an operator A on d coordinates.

    Attributes:
      diagonal: Diagonal of the tridiagonal matrix T = QAQ', `[k]`, float64.
      coupling: Its off-diagonal, `[k]`, float64; the last entry couples T to the step
        that was not made. 0 where the Krylov space ended.
      basis: Q, orthonormal rows, `[k, d]`.
    """

    diagonal: np.ndarray
    coupling: np.ndarray
    basis: np.ndarray

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the eigenvalues of T, ascending, and its eigenvectors as columns."""
        off = self.coupling[:-1]
        return np.linalg.eigh(
            np.diag(self.diagonal) + np.diag(off, 1) + np.diag(off, -1)
        )


def lanczos(
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    steps: int,
    rng: np.random.Generator,
    done: Callable[[Lanczos], bool] | None = None,
) -> Lanczos:
    r"""Returns at most `steps` steps of Lanczos' method.

    .. math::
      \beta_k q_{k+1} = A q_k - \alpha_k q_k - \beta_{k-1} q_{k-1}, \qquad
      \alpha_k = q_k^\top A q_k

    Each new vector is made orthogonal to all earlier ones, twice. Where the Krylov
    space ends, :math:`\beta_k` is rounding noise; it is set to 0, and the method goes
    on with a random vector. Dividing by such a :math:`\beta_k` gives eigenvalues far
    beyond the spectrum. The basis is in host memory.

    Args:
      product: `v[d] -> A v`.
      start: The first vector, `[d]`, of any length above 0.
      steps: Largest number of products. Never more than d are made.
      rng: Draws the vectors after an end of the Krylov space.
      done: Called after every step as long as the Krylov space has not ended; stops
        the method where it returns True.
    """
    steps = min(steps, len(start))
    basis = np.empty((steps, len(start)), start.dtype)
    diagonal, coupling = np.zeros(steps), np.zeros(steps)
    tolerance = 100 * float(np.finfo(start.dtype).eps)
    basis[0] = start / np.linalg.norm(start)
    scale, ended = 0.0, False
    for k in range(steps):
        image = product(basis[k])
        diagonal[k] = np.vdot(basis[k], image)
        rest = _orthogonal(image, basis[: k + 1])
        coupling[k] = np.linalg.norm(rest)
        scale = max(scale, abs(diagonal[k]), coupling[k])
        if coupling[k] <= tolerance * scale:
            coupling[k], ended = 0.0, True
            rest = _orthogonal(_normal(rng, start), basis[: k + 1])
        if k + 1 < steps:
            # A short vector is less orthogonal, relative to its length.
            rest = _orthogonal(rest / np.linalg.norm(rest), basis[: k + 1])
            basis[k + 1] = rest / np.linalg.norm(rest)
        found = Lanczos(diagonal[: k + 1], coupling[: k + 1], basis[: k + 1])
        if done is not None and not ended and done(found):
            return found
    return Lanczos(diagonal, coupling, basis)


def _normal(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    return rng.standard_normal(like.shape).astype(like.dtype)


def _orthogonal(vector: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Returns the part of a vector that is orthogonal to the rows of a basis."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector
