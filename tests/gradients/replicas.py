"""Every method once more, in NumPy float64: what the library is compared with.

Written from the published formulas and the docstrings, not from the code. Parameters
are one vector, the bias first, as they are flattened; `live` says which of them a mask
leaves. A weight off the mask is 0 and stays out of every norm, sum and inner product,
as if the network had been built without it; gradients are of all weights. A replica is
`(At, memory, options) -> (Step, memory)`; its memory is a list of arrays, None before
the first step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Problem:
    """Logistic losses of tanh-coupled outputs: 12 examples, a kernel and a bias."""

    inputs, outputs, examples = 3, 8, 12

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(self.examples, self.inputs))
        self.y = rng.integers(0, 2, size=(self.examples, self.outputs)).astype(float)
        self.size = self.outputs * (1 + self.inputs)
        self.start = rng.normal(size=self.size)
        self.bias = slice(0, self.outputs)
        self.leaves = [self.bias, slice(self.outputs, self.size)]
        column = np.arange(self.size - self.outputs) % self.outputs
        self.filter_of = np.concatenate([np.zeros(self.outputs, int), 1 + column])

    def masks_of_leaves(self):
        index = np.arange(self.size)
        return [index < self.outputs, index >= self.outputs]

    def outputs_of(self, w, examples):
        kernel = w[self.outputs :].reshape(self.inputs, self.outputs)
        return self.x[examples] @ kernel + w[self.bias], self.y[examples]

    def losses(self, w, examples=slice(None)):
        z, y = self.outputs_of(w, examples)
        return np.sum(np.logaddexp(0, z) - y * z, 1) + np.sum(np.tanh(z), 1) ** 2 / 2

    def gradients(self, w, examples=slice(None)):
        """Of the single examples, `[n, d]`."""
        z, y = self.outputs_of(w, examples)
        tanh = np.tanh(z)
        back = 1 / (1 + np.exp(-z)) - y + tanh.sum(1, keepdims=True) * (1 - tanh**2)
        kernel = self.x[examples][:, :, None] * back[:, None, :]
        return np.concatenate([back, kernel.reshape(len(back), -1)], 1)

    def loss(self, w):
        return self.losses(w).mean()

    def grad(self, w, examples=slice(None)):
        return self.gradients(w, examples).mean(0)


class At(NamedTuple):
    """Where a gradient is wanted, by which losses, and what is live there."""

    problem: Problem
    uphill: Problem
    w: np.ndarray
    t: int
    live: np.ndarray
    draws: Callable[..., np.ndarray]

    def draw(self, kind, *folds):
        """This step's random numbers, from its key with the numbers folded in."""
        return self.draws(self.t, kind, *folds)

    def norm(self, v):
        return np.linalg.norm(v[self.live])

    def dot(self, x, y):
        return x[self.live] @ y[self.live]


class Step(NamedTuple):
    """A gradient, and what `Info` says of it."""

    grad: Any
    eps: np.ndarray
    there: np.ndarray
    value: float
    descent_value: float
    direction_norm: float
    forward: float
    backward: float
    unperturbed: int = 0


def taken(at, eps, direction_norm, forward, backward, value=None, grad=None, **others):
    """The step that returns the gradient at w + eps, or `grad` in its stead."""
    there = at.problem.grad(at.w + eps)
    there_value = at.problem.loss(at.w + eps)
    step = Step(
        there if grad is None else grad,
        eps,
        there,
        there_value if value is None else value,
        there_value,
        direction_norm,
        forward,
        backward,
    )
    return step._replace(**others)


def plain(at, g, value, grad):
    """The step without a second pass."""
    return Step(grad, np.zeros_like(g), g, value, value, 0.0, 0, 1)


def along(at, d, rho, norm_over="mask", layerwise=False):
    """A perturbation of radius rho along d on the mask, and the norm of d."""
    d_live, norm = d * at.live, at.norm(d)
    if norm == 0:
        return np.zeros_like(d), 0.0
    if norm_over == "all":
        return rho * d_live / np.linalg.norm(d), norm
    if not layerwise:
        return rho * d_live / norm, norm
    eps = np.zeros_like(d)
    for leaf in at.problem.leaves:
        share = np.linalg.norm(at.w[leaf]) / np.linalg.norm(at.w)
        eps[leaf] = rho * share * d_live[leaf] / np.linalg.norm(d_live[leaf])
    return eps, norm


# First-order methods.


def sam(at, memory, *, rho, steps=1, layerwise=False, norm_over="mask"):
    w = at.w
    for _ in range(steps):
        d = at.uphill.grad(w)
        eps, norm = along(at._replace(w=w), d, rho / steps, norm_over, layerwise)
        w = w + eps
    return taken(at, w - at.w, norm, 0, steps + 1, at.uphill.loss(at.w)), memory


def asam(at, memory, *, rho, eta, biases_scaled=False):
    scale = np.abs(at.w) + eta
    if not biases_scaled:
        scale[at.problem.bias] = 1
    g = at.problem.grad(at.w)
    eps = rho * scale**2 * g * at.live / at.norm(scale * g)
    return taken(at, eps, at.norm(scale * g), 0, 2, at.problem.loss(at.w)), memory


def gsam(at, memory, *, rho, alpha, minimize_perturbed=True):
    step, _ = sam(at, memory, rho=rho)
    g, p = at.problem.grad(at.w), step.there
    if minimize_perturbed:
        grad = p - alpha * (g - at.dot(g, p) / at.dot(p, p) * p)
    else:
        grad = g + alpha * (p - at.dot(p, g) / at.dot(g, g) * g)
    return step._replace(grad=grad), memory


def fsam(at, memory, *, rho, sigma, decay):
    g = at.problem.grad(at.w)
    if memory is None:
        d = mean = g
    else:
        d = g - sigma * memory[0]
        mean = decay * memory[0] + (1 - decay) * g
    eps, norm = along(at, d, rho)
    return taken(at, eps, norm, 0, 2, at.problem.loss(at.w)), [mean, 1]


def vasso(at, memory, *, rho, theta):
    g = at.problem.grad(at.w)
    d = g if memory is None else theta * g + (1 - theta) * memory[0]
    eps, norm = along(at, d, rho)
    return taken(at, eps, norm, 0, 2, at.problem.loss(at.w)), [d, 1]


def wsam(at, memory, *, rho, gamma, decouple=False, max_norm=np.inf):
    """Decoupled: `(g, a (g_p - g))`."""
    step, _ = sam(at, memory, rho=rho)
    g, p = (
        v * min(1, max_norm / at.norm(v)) for v in (at.problem.grad(at.w), step.there)
    )
    a = gamma / (1 - gamma)
    if decouple:
        return step._replace(grad=(g, a * (p - g))), memory
    return step._replace(grad=(1 - a) * g + a * p), memory


# Methods that save passes, or perturb a part.


def esam(at, memory, *, rho, beta, gamma):
    g = at.problem.grad(at.w)
    eps, norm = along(at, g, rho)
    eps = eps * (at.draw("uniform") < beta) / beta
    if gamma == 1:
        return taken(at, eps, norm, 0, 2, at.problem.loss(at.w)), memory
    rise = at.problem.losses(at.w + eps) - at.problem.losses(at.w)
    sharpest = np.argsort(-rise)[: round(gamma * len(rise))]
    there = at.problem.grad(at.w + eps, sharpest)
    value = at.problem.loss(at.w)
    return taken(at, eps, norm, 1, 1 + gamma, value, there, there=there), memory


def looksam(at, memory, *, rho, every, alpha, layerwise=False):
    g, value = at.problem.grad(at.w), at.problem.loss(at.w)
    parts = at.problem.masks_of_leaves() if layerwise else [np.ones_like(at.live)]
    if at.t % every == 0:
        eps, norm = along(at, g, rho, layerwise=layerwise)
        step = taken(at, eps, norm, 0, 2, value)
        p = step.there
        orthogonal = sum(
            on * (p - at.dot(on * p, g) / at.dot(on * g, g) * g) for on in parts
        )
        return step, [at.t + 1, orthogonal]
    v = memory[1]
    reused = sum(at.norm(on * g) / at.norm(on * v) * on * v for on in parts)
    return plain(at, g, value, g + alpha * reused), [at.t + 1, v]


def aesam(at, memory, *, rho, total_steps, lambda_1, lambda_2, delta):
    g, value = at.problem.grad(at.w), at.problem.loss(at.w)
    square = at.dot(g, g)
    if memory is None:
        # The statistics are those of the norm relative to a power of two.
        memory = 0, 0, 2 ** np.floor(np.log2(np.sqrt(square)))
    mean, variance, unit = memory
    square /= unit**2
    mean = delta * mean + (1 - delta) * square
    variance = delta * variance + (1 - delta) * (square - mean) ** 2
    c = at.t / total_steps * lambda_1 + (1 - at.t / total_steps) * lambda_2
    if square >= mean + c * np.sqrt(variance):
        eps, norm = along(at, g, rho)
        return taken(at, eps, norm, 0, 2, value), [mean, variance, unit]
    return plain(at, g, value, g), [mean, variance, unit]


def top(scores, among, count):
    """The `count` largest scores among the candidates, as a boolean vector."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(np.where(among, -scores, np.inf), kind="stable")[:count]] = True
    return chosen


def ssam(at, memory, *, rho, sparsity, mask, interval, num_examples=0, **dynamic):
    chosen = None if memory is None else memory[1]
    g = at.problem.grad(at.w)
    count, passes = round((1 - sparsity) * at.live.sum()), 2
    if at.t % interval == 0:
        if mask == "fisher":
            fisher = np.sum(at.problem.gradients(at.w, slice(0, num_examples)) ** 2, 0)
            chosen = top(fisher, at.live, count)
            passes += num_examples / at.problem.examples
        else:
            chosen = replaced(at, chosen, np.abs(g), count, **dynamic)
    eps, norm = along(at, g, rho)
    step = taken(at, eps * chosen, norm, 0, passes, at.problem.loss(at.w))
    return step, [at.t + 1, chosen]


def replaced(at, chosen, score, count, *, total_steps, drop_fraction, grow):
    if at.t == 0:
        return top(at.draw("uniform"), at.live, count)
    share = drop_fraction / 2 * (1 + np.cos(np.pi * at.t / total_steps))
    number = round(share * count)
    others = at.live & ~chosen
    kept = top(score, chosen, count - number)
    grown = top(score if grow == "gradient" else at.draw("uniform"), others, number)
    return kept | grown


def cram(at, memory, *, rho, sparsities, plus=True, sparse_gradient=True):
    step, _ = sam(at, memory, rho=rho * at.norm(at.uphill.grad(at.w)))
    kernel = at.live.copy()
    kernel[at.problem.bias] = False
    drawn = at.draw(f"below {len(sparsities)}", 2**32 - 5)
    left_out = round(sparsities[int(drawn)] * kernel.sum())
    kept = top(np.abs(at.w + step.eps), kernel, kernel.sum() - left_out) | ~kernel
    w = (at.w + step.eps) * kept
    there = at.problem.grad(w)
    grad = there * kept if sparse_gradient else there
    return step._replace(
        grad=at.problem.grad(at.w) + grad if plus else grad,
        eps=w - at.w,
        there=there,
        descent_value=at.problem.loss(w),
    ), memory


# Methods with one pass.


def s2sam(at, memory, *, rho):
    last = np.zeros_like(at.w) if memory is None else memory[0]
    eps, norm = along(at, last, rho)
    step = taken(at, eps, norm, 0, 1, unperturbed=int(memory is None))
    return step, [step.there]


def sampa(at, memory, *, rho, learning_rate, weight):
    last = np.zeros_like(at.w) if memory is None else memory[0]
    rate = learning_rate(at.t) if callable(learning_rate) else learning_rate
    y = at.w - rate * last * at.live
    eps, norm = along(at, last, rho)
    step = taken(at, eps, norm, 0, 2, at.uphill.loss(y), unperturbed=memory is None)
    new = at.uphill.grad(y)
    return step._replace(grad=(1 - weight) * step.there + weight * new), [new]


def msam(at, memory, *, rho, momentum):
    v = np.zeros_like(at.w) if memory is None else memory[0]
    eps, norm = along(at, -v, rho)
    step = taken(at, eps, norm, 0, 1, unperturbed=int(memory is None))
    return step, [momentum * v * at.live + step.there]


def by_filter(at, v):
    """Sums over every filter: the bias, then the columns of the kernel."""
    return np.bincount(at.problem.filter_of, v * at.live)


def filter_noise(at):
    norms = np.sqrt(by_filter(at, at.w**2))
    return at.draw("normal") * norms[at.problem.filter_of] * at.live


def rwp(at, memory, *, rho):
    noise = filter_noise(at)
    return taken(at, rho * noise, at.norm(noise), 0, 1), memory


def mrwp(at, memory, *, rho, alpha):
    noise = filter_noise(at)
    step = taken(at, rho * noise, at.norm(noise), 0, 2, at.uphill.loss(at.w))
    grad = (1 - alpha) * at.uphill.grad(at.w) + alpha * step.there
    return step._replace(grad=grad), memory


def arwp(at, memory, *, rho, eta, beta):
    squares = np.zeros(at.problem.outputs + 1) if memory is None else memory[0]
    noise = filter_noise(at) / np.sqrt(1 + eta * squares)[at.problem.filter_of]
    step = taken(at, rho * noise, at.norm(noise), 0, 1)
    return step, [beta * squares + by_filter(at, step.there**2)]


# Optimizers: `(w, gradient) -> w`.


class Sgd:
    def __init__(self, rate, momentum=0.0, weight_decay=0.0):
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.v = 0.0

    def __call__(self, w, g):
        beside = 0.0
        if isinstance(g, tuple):
            g, beside = g
        self.v = self.momentum * self.v + g + self.weight_decay * w
        return w - self.rate * (self.v + beside)


class SignSgd:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, w, g):
        return w - self.rate * np.sign(g)


class AdamW:
    def __init__(self, rate, b1, b2, eps, weight_decay):
        self.rate, self.b1, self.b2, self.eps = rate, b1, b2, eps
        self.weight_decay, self.t, self.m, self.v = weight_decay, 0, 0.0, 0.0

    def __call__(self, w, g):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return w - self.rate * (m / (np.sqrt(v) + self.eps) + self.weight_decay * w)


def train(problem, uphill, live, steps, draws, replica, optimizer):
    """The trajectory `[steps + 1, d]`, every step, and the memory at the end."""
    w, memory = problem.start * live, None
    points, seen = [w], []
    for t in range(steps):
        at = At(problem, uphill, w, t, live, draws)
        step, memory = replica(at, memory)
        w = optimizer(w, step.grad) * live
        points.append(w)
        seen.append(step)
    return np.array(points), seen, memory
