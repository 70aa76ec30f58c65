"""Replicas of the methods that look uphill with forward passes; see `replicas`."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from replicas import Step, along, taken


def random_sign(at, memory, *, rho):
    eps, norm = along(at, at.draw("normal", 0), rho)
    return taken(at, eps, norm, 0, 1), memory


def slope(problem, w, u, delta, two_sided=True):
    """The difference along u, its limit without delta, and the mean loss of a pair."""
    f = problem.loss
    if delta is None:
        return problem.grad(w) @ u, f(w)
    up = f(w + delta * u)
    if not two_sided:
        return (up - f(w)) / delta, f(w)
    down = f(w - delta * u)
    return (up - down) / (2 * delta), (up + down) / 2


def directions(at, number, distribution, *folds):
    """The directions before a mask restricts them."""
    if distribution == "rademacher":
        return [at.draw("rademacher", *folds, i) for i in range(number)]
    drawn = [at.draw("normal", *folds, i) for i in range(number)]
    if distribution == "sphere":
        return [z * np.sqrt(at.live.sum()) / at.norm(z) for z in drawn]
    return drawn


class Estimated(NamedTuple):
    grad: np.ndarray
    dense: np.ndarray
    coefficients: np.ndarray
    value: float
    forward: int


def rge(problem, at, w, *folds, delta, number, distribution="gaussian", two_sided=True):
    dense = directions(at, number, distribution, *folds)
    probes = [slope(problem, w, u * at.live, delta, two_sided) for u in dense]
    coefficients, values = map(np.array, zip(*probes, strict=True))
    mean = coefficients @ np.array(dense) / number
    forward = 3 * number if delta is None else 2 * number if two_sided else number + 1
    return Estimated(mean * at.live, mean, coefficients, values.mean(), forward)


def zosam(
    at,
    memory,
    *,
    rho,
    norm_over="mask",
    layerwise=False,
    every=1,
    second=None,
    **probes,
):
    if at.t % every == 0:
        seen = rge(at.uphill, at, at.w, **probes)
        value, forward, dense = seen.value, seen.forward, seen.dense
        memory = [at.t + 1, at.draw("key"), seen.coefficients]
    else:
        value, forward = None, 0
        last = at._replace(t=at.t - at.t % every)
        number, distribution = probes["number"], probes.get("distribution", "gaussian")
        dense = memory[2] @ np.array(directions(last, number, distribution)) / number
        memory = [at.t + 1, *memory[1:]]
    memory = memory if every > 1 else []
    eps, norm = along(at, dense, rho, norm_over, layerwise)
    if second is None:
        return taken(at, eps, norm, forward, 1, value), memory
    there = rge(at.problem, at, at.w + eps, second, **probes)
    grad, forward = there.grad, forward + there.forward
    return Step(grad, eps, grad, value, there.value, norm, forward, 0), memory


def coordinates(at, memory, *, rho, delta, two_sided=True):
    units = np.eye(at.problem.size)
    d = [slope(at.uphill, at.w, e, delta, two_sided)[0] for e in units]
    eps, norm = along(at, np.array(d), rho)
    forward = 1 + (1 + two_sided) * at.live.sum()
    return taken(at, eps, norm, forward, 1, at.uphill.loss(at.w)), memory


def part_of(problem, i, count):
    """The problem whose loss sees the i-th of equal parts of the examples alone."""
    size = problem.examples // count
    part = slice(i * size, (i + 1) * size)
    return SimpleNamespace(loss=lambda w: problem.losses(w, part).mean())


def guided(at, memory, *, rho, delta, number, guides, exploration=0.0, disjoint=False):
    if memory is None:
        past, slopes = [np.zeros_like(at.w) for _ in guides], np.zeros(len(guides))
    else:
        *leaves, slopes, _ = memory
        past = list(np.concatenate(leaves, axis=1))
    basis, known = explored(at, past, exploration)
    step_size = delta * np.sqrt(at.live.sum())
    slopes, values = slopes.copy(), []
    for i in range(number):
        j = (at.t * number + i) % len(guides)
        seen = part_of(at.uphill, j, number) if disjoint else at.uphill
        slopes[j], value = slope(seen, at.w, basis[j], step_size)
        values.append(value)
    eps, norm = along(at, slopes @ np.array(basis), rho)
    passes = 2 if disjoint else 2 * number
    step = taken(at, eps, norm, passes, 1, np.mean(values))
    # What was measured along a random stand-in for a guide is not kept.
    slopes = slopes * known
    new = [a * m + (1 - a) * step.there for a, m in zip(guides, past, strict=True)]
    for j, (old, turned) in enumerate(zip(past, new, strict=True)):
        norms = at.norm(old) * at.norm(turned)
        slopes[j] *= at.dot(old, turned) / norms if norms else 0.0
    # Leaf by leaf, as the library holds them: 8 biases, and the kernel.
    return step, [*np.split(np.array(new), [8], axis=1), slopes, at.t + 1]


def explored(at, past, exploration):
    """The guides orthonormal on the mask, each with a random axis orthogonal to all."""
    drawn = [at.draw("normal", j) for j in range(len(past))]
    axes = []
    for vector in [*past, *drawn]:
        q = vector * at.live
        for other in axes:
            if other is not None:
                q = q - (other @ q) * other
        is_new = at.norm(q) > 3e-3 * at.norm(vector)
        axes.append(q / at.norm(q) if is_new else None)
    guides, chances = axes[: len(past)], axes[len(past) :]
    keep, mix = np.sqrt(1 - exploration), np.sqrt(exploration)
    basis = [
        chance if guide is None else keep * guide + mix * chance
        for guide, chance in zip(guides, chances, strict=True)
    ]
    return basis, np.array([guide is not None for guide in guides])


def zeroth_order(at, memory, **probes):
    seen = rge(at.problem, at, at.w, **probes)
    nothing = np.zeros_like(at.w)
    value, forward = seen.value, seen.forward
    norm = np.linalg.norm(seen.grad)
    return Step(seen.grad, nothing, nothing, value, value, norm, forward, 0), memory
