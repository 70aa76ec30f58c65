"""Every method that changes its topology, in NumPy: sorts, loops and fractions.

Written from the papers' rules and the docstrings. A rule is `(step, w, g, masks) ->
masks`, the same ones where nothing changes; float32 where the library is float32, and
whole numbers in Python's.
"""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"a": (8, 12), "b": (3, 3, 2, 4), "bias": (12,), "c": (4, 16)}
SPARSE = ("a", "b", "c")
SIZES = {k: int(np.prod(SHAPES[k])) for k in SPARSE}
STEPS, EXAMPLES, SEED = 1000, 8, 3
RATE, MOMENTUM = np.float32(0.05), np.float32(0.9)
# The library rounds otherwise (fused multiplications, another order of sums). No choice
# between two scores that are nearer than this is compared.
MARGIN = 1e-6


def start():
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def targets():
    """What each example pulls the weights to: [EXAMPLES, *shape]."""
    rng = np.random.default_rng(1)
    return {
        k: rng.normal(size=(EXAMPLES, *s)).astype(np.float32) * np.float32(0.5)
        + np.roll(x, 1) * np.float32(0.7)
        for (k, s), x in zip(SHAPES.items(), start().values(), strict=True)
    }


def stiffness(step):
    """Of the quadratic, which changes from step to step, in any array library."""
    return 1.5 + (step % 7) / 7


def gradient(w, step):
    """Of the mean over the examples of stiffness / 2 * |w - target|^2."""
    return {
        k: ((w[k] - t) * np.float32(stiffness(np.float32(step)))).mean(0)
        for k, t in targets_once().items()
    }


targets_once = functools.cache(targets)


def best(scores, among, count):
    """The `count` of `among` with the highest scores, ties to the lower."""
    ranked = sorted(among, key=lambda i: (-scores[i], i))
    if 0 < count < len(ranked):
        low, high = scores[ranked[count]], scores[ranked[count - 1]]
        assert high == low or high - low > MARGIN, "too near to compare"
    return ranked[:count]


def floor(x):
    assert abs(x - round(float(x))) > 1e-4 or x == round(float(x)), "too near"
    return int(np.floor(x))


def as_mask(chosen, shape):
    mask = np.zeros(int(np.prod(shape)), bool)
    mask[list(chosen)] = True
    return mask.reshape(shape)


def _draw(key):
    """The front of 1024 numbers for each sparse leaf, from `fold_in(key, place)`."""
    return [
        jax.random.uniform(jax.random.fold_in(key, i), (1024,))[: SIZES[k]]
        for i, k in enumerate(SPARSE)
    ]


def _named(drawn):
    return {k: np.asarray(x) for k, x in zip(SPARSE, drawn, strict=True)}


@functools.cache
def growth_draws():
    """The random scores of every step: split(fold_in(fold_in(key, 2**32-1), t))[1]."""
    stream = jax.random.fold_in(jax.random.key(SEED), np.uint32(2**32 - 1))

    def draw(step):
        return _draw(jax.random.split(jax.random.fold_in(stream, step))[1])

    drawn = _named(jax.jit(jax.vmap(draw))(jnp.arange(STEPS)))
    return [{k: x[step] for k, x in drawn.items()} for step in range(STEPS)]


def randomly(step, g):
    return growth_draws()[step]


def by_gradient(step, g):
    return {k: np.abs(g[k]).reshape(-1) for k in SPARSE}


def cosine(peak, end, steps):
    def fraction(step):
        angle = np.float32(np.pi) * np.float32(min(step / steps, 1))
        return np.float32(end) + np.float32((peak - end) / 2) * (1 + np.cos(angle))

    return fraction


def every(interval, stop, first=None):
    first = interval if first is None else first
    return lambda t: t >= first and (t - first) % interval == 0 and t < stop


def _mask_key():
    return jax.random.fold_in(jax.random.key(SEED), np.uint32(2**32 - 12))


def random_start(live):
    """The masks of the `live[k]` highest uniform numbers of a stream of key(seed)."""
    drawn = _named(_draw(_mask_key()))
    return {
        k: as_mask(best(drawn[k], range(SIZES[k]), live[k]), SHAPES[k]) for k in live
    }


def largest_start(live):
    w = start()
    return {
        k: as_mask(best(np.abs(w[k].flat), range(SIZES[k]), live[k]), SHAPES[k])
        for k in live
    }


def dense_start(live):
    return {k: np.ones(SHAPES[k], bool) for k in live}


def drop_and_grow(fraction, fires, grow, by_sign=False):
    """SET, RigL, ITOP, SViTE: the same number dropped and grown in every layer."""

    def rule(step, w, g, masks):
        if not fires(step):
            return masks
        rank, new = grow(step, g), {}
        for k, mask in masks.items():
            flat, size = w[k].reshape(-1), np.abs(w[k]).reshape(-1)
            live = np.flatnonzero(mask)
            dropped = floor(fraction(step) * np.float32(live.size))
            kept = live.size - dropped
            if by_sign:
                minus = [i for i in live if flat[i] < 0]
                plus = [i for i in live if flat[i] >= 0]
                # The same share of each, rounded down for the negative ones.
                below = kept * len(minus) // live.size
                below = max(below, kept - len(plus))
                stay = best(size, minus, below) + best(size, plus, kept - below)
            else:
                stay = best(size, live, kept)
            stay = set(stay)
            rest = [i for i in range(mask.size) if i not in stay]
            grown = best(rank[k], rest, dropped)
            new[k] = as_mask([*stay, *grown], mask.shape)
        return new

    return rule


def mest(sparsity, stages, interval, weight=0.0):
    """Prune to one sparsity, grow at random to another, by stages of the training."""

    def rule(step, w, g, masks):
        at_end = stages and step == int(np.ceil(stages[-1][0] * STEPS))
        if step % interval and not at_end:
            return masks
        bounds = [(p, q) for until, p, q in stages if step < until * STEPS]
        low, high = bounds[0] if bounds else (sparsity, sparsity)
        new = {}
        for k, mask in masks.items():
            size, number = np.abs(w[k]).reshape(-1), mask.size
            score = size + np.float32(weight) * np.abs(g[k]).reshape(-1)
            kept = round((1 - low) * number)
            live = round((1 - high) * number)
            stay = set(best(score, np.flatnonzero(mask), kept))
            rest = [i for i in range(number) if i not in stay]
            grown = best(growth_draws()[step][k], rest, live - kept)
            new[k] = as_mask([*stay, *grown], mask.shape)
        return new

    return rule


class Seen(NamedTuple):
    """What a case is to have met, so that the test tests it."""

    full: list
    regrown: list


def dsr(interval, fraction, threshold, stop):
    """One threshold for all layers; what drops grows in proportion to what is left."""
    state = {"threshold": np.float32(threshold)}
    seen = Seen([], [])

    def fires(step):
        times = 1
        for share, factor in ((0.125, 2), (0.4, 4), (0.7, 8)):
            times = factor if step >= share * STEPS else times
        return step > 0 and step % (interval * times) == 0 and step < stop * STEPS

    def rule(step, w, g, masks):
        if not fires(step):
            return masks
        limit, kept = state["threshold"], {}
        for k, mask in masks.items():
            size = np.abs(w[k]).reshape(-1)
            live = np.flatnonzero(mask)
            assert np.all(np.abs(size[live] - limit) > MARGIN), "too near"
            kept[k] = [i for i in live if size[i] >= limit] or best(size, live, 1)
        before = sum(int(m.sum()) for m in masks.values())
        dropped = before - sum(map(len, kept.values()))
        if dropped < 0.9 * fraction * before:
            state["threshold"] = limit * np.float32(2)
        elif dropped > 1.1 * fraction * before:
            state["threshold"] = limit * np.float32(0.5)
        given = shared_out(
            dropped,
            [len(kept[k]) for k in masks],
            [masks[k].size - len(kept[k]) for k in masks],
        )
        new = {}
        for (k, mask), count in zip(masks.items(), given, strict=True):
            stay = set(kept[k])
            just = set(np.flatnonzero(mask)) - stay
            fresh = [i for i in range(mask.size) if i not in stay and i not in just]
            grown = best(growth_draws()[step][k], fresh, min(count, len(fresh)))
            grown += sorted(just)[: count - len(grown)]
            seen.full.append(len(stay) + count == mask.size)
            seen.regrown.append(count > len(fresh))
            new[k] = as_mask([*stay, *grown], mask.shape)
        return new

    rule.seen = seen  # pyright: ignore[reportFunctionMemberAccess]
    return rule


def shared_out(total, weights, room):
    """Largest remainders in exact fractions, among the layers that have room left."""
    given = [0] * len(room)
    while (left := total - sum(given)) > 0:
        open_ = [i for i in range(len(room)) if given[i] < room[i]]
        whole = sum(max(weights[i], 1) for i in open_)
        share = {i: Fraction(left * max(weights[i], 1), whole) for i in open_}
        for i in open_:
            given[i] += min(int(share[i]), room[i] - given[i])
        still = [i for i in open_ if given[i] < room[i]]
        if still != open_:
            continue  # What they had no room for goes to the others.
        missing = total - sum(given)
        first = sorted(still, key=lambda i: (-(share[i] - int(share[i])), i))
        for i in first[:missing]:
            given[i] += 1
    return given


def gmp(target, interval, first, last, across=False):
    """Cubic from dense to the target; nothing that is pruned comes back."""

    def rule(step, w, g, masks):
        if step < first or (step - first) % interval or step > last:
            return masks
        done = 1 - (1 - Fraction(step - first, last - first)) ** 3
        kept = {k: SIZES[k] - round(done * (SIZES[k] - target[k])) for k in masks}
        size = {k: np.abs(w[k]).reshape(-1) for k in masks}
        if not across:
            return {
                k: as_mask(best(size[k], np.flatnonzero(m), kept[k]), m.shape)
                for k, m in masks.items()
            }
        return largest_of_all(w, sum(kept.values()), masks)

    return rule


def straight_through(live):
    def rule(step, w, g, masks):
        return largest(w, live)

    return rule


def largest(w, live):
    return {
        k: as_mask(best(np.abs(w[k]).reshape(-1), range(SIZES[k]), live[k]), SHAPES[k])
        for k in live
    }


def largest_of_all(w, count, among=None):
    """One ranking of all leaves, each of which keeps at least one weight."""
    size = {k: np.abs(w[k]).reshape(-1) for k in SPARSE}
    live = {k: range(SIZES[k]) for k in SPARSE}
    if among is not None:
        live = {k: np.flatnonzero(m) for k, m in among.items()}
    stay = {k: best(size[k], live[k], 1) for k in SPARSE}
    rest = [(k, i) for k in SPARSE for i in live[k] if i not in stay[k]]
    flat = [size[k][i] for k, i in rest]
    for k, i in (rest[j] for j in best(flat, range(len(rest)), count - len(stay))):
        stay[k].append(i)
    return {k: as_mask(stay[k], SHAPES[k]) for k in SPARSE}


def train(masks, rule, decay=None):
    """Momentum SGD; with `decay` straight through, and the masks chosen afterwards.

    Yields `(step, w, masks)` after each step, of 1,000.
    """
    moment = {k: np.zeros(s, np.float32) for k, s in SHAPES.items()}
    w = start()
    if decay is None:
        w = applied(w, masks)
    for step in range(STEPS):
        g = gradient(w if decay is None else applied(w, masks), step)
        if decay is None:
            new = rule(step, w, g, masks)
            for k in SPARSE:
                moment[k] = np.where(new[k] != masks[k], 0, moment[k])
            masks = new
            w, g = applied(w, masks), applied(g, masks)
        else:
            pruned = {k: np.where(masks[k], 0, w[k]) for k in SPARSE}
            g |= {k: g[k] + np.float32(decay) * pruned[k] for k in SPARSE}
        for k in SHAPES:
            moment[k] = g[k] + MOMENTUM * moment[k]
            w[k] = w[k] - RATE * moment[k]
        if decay is not None:
            masks = rule(step, w, g, masks)
        yield step, w, masks


def train_safe(masks, project, end, strength=0.5, interval=20):
    """SAFE: momentum SGD with the penalty of z and u, until P(w) after step `end`.

    Yields as `train` does.

    Args:
      masks: All live.
      project: `w -> masks`, those of the largest entries.
      end: The number of steps with the penalty.
      strength: Of the penalty at the end.
      interval: Steps between two projections.
    """
    moment = {k: np.zeros(s, np.float32) for k, s in SHAPES.items()}
    w = start()
    z, u = applied(w, project(w)), {k: np.zeros_like(w[k]) for k in SPARSE}
    for step in range(STEPS):
        g = applied(gradient(w, step), masks)
        if step < end:
            rise = np.float32(strength * (1 - np.cos(np.pi * step / end)) / 2)
            g |= {k: g[k] + rise * (w[k] - z[k] + u[k]) for k in SPARSE}
        for k in SHAPES:
            moment[k] = g[k] + MOMENTUM * moment[k]
            w[k] = w[k] - RATE * moment[k]
        if step < end and step % interval == interval - 1:
            both = {k: w[k] + u[k] for k in SPARSE}
            z = applied(both, project(both))
            u = {k: both[k] - z[k] for k in SPARSE}
        if step == end - 1:
            masks = project(w)
            w, moment = applied(w, masks), applied(moment, masks)
        yield step, w, masks


def applied(x, masks):
    return {k: np.where(masks[k], v, 0) if k in masks else v for k, v in x.items()}
