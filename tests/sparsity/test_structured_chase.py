"""Chase against NumPy: two budgets, of weights and of units, and their product."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured import best, cosine, mask_of, normal, train, train_in_numpy

import zosam_jax as zs
from zosam_jax.sparsity import Units

# The channels of a are read by b, and those of b by c, which is dense but for them.
SHAPES = {"a": (3, 3, 2, 10), "b": (10, 12), "bias": (10,), "c": (12, 3), "e": (4, 16)}
WEIGHTS = ("a", "b", "e")
GROUPS = {
    "one": Units("b", incoming=("a", "bias")),
    "two": Units("c", incoming=("b",)),
}
UNITS = {"a": 10, "b": 12}
SIZE = sum(int(np.prod(SHAPES[k])) for k in WEIGHTS)
SPARSITY, GONE, FLOOR = 0.6, 0.5, 1.0
NUMBER = SIZE - round(SPARSITY * SIZE)
STEPS, INTERVAL, STOP = 300, 10, 210
REMOVALS = range(15, 181, 20)
FAST = {"xla_backend_optimization_level": 0}


def chase(**options):
    return zs.sparsity.chase(
        **{
            "sparsity": SPARSITY,
            "total_steps": STEPS,
            "groups": GROUPS,
            "unit_sparsity": GONE,
            "unit_floor": FLOOR,
            "unit_interval": 20,
            "unit_stop_fraction": 0.6,
            "interval": INTERVAL,
            "extra_fraction": 0.7,
            "dense": "c",
            "seed": 3,
            **options,
        }
    )


@functools.cache
def run(**options):
    """`(step, params, masks, memory)` before the first and after each step."""
    history = train(chase(**options), normal(SHAPES), STEPS)
    return [(*rest, jax.tree.map(np.array, memory)) for *rest, memory in history]


def whole(x):
    assert abs(x % 1 - 0.5) > 1e-3, "too near to compare"
    return round(float(x))


def left(step):
    """Units of both layers after the last removal."""
    total, last = sum(UNITS.values()), REMOVALS[-1]
    due = max([t for t in REMOVALS if t <= step], default=0)
    return total - whole(GONE * total * (1 - (1 - due / last) ** 3))


def ranked(scores, among, count):
    """The best of several leaves together, ties to the earlier."""
    flat = [(k, i) for k in scores for i in among[k]]
    value = np.array([scores[k].flat[i] for k, i in flat])
    order = sorted(value, reverse=True)
    if 0 < count < len(order):
        low, high = order[count], order[count - 1]
        assert high == low or high - low > 1e-6, "too near to compare"
    chosen = {k: [] for k in scores}
    for j in best(value, range(len(flat)), count):
        chosen[flat[j][0]].append(flat[j][1])
    return chosen


class Replica:
    """The rule, with one thing wrong, if asked."""

    def __init__(self, wrong=""):
        self.wrong = wrong
        self.live = {k: np.ones(n, bool) for k, n in UNITS.items()}

    def within(self):
        """What the units that are left allow."""
        allowed = {k: np.ones(SHAPES[k], bool) for k in (*WEIGHTS, "c")}
        for k, reader in (("a", "b"), ("b", "c")):
            allowed[k] &= self.live[k]
            allowed[reader] &= self.live[k][:, None]
        return allowed

    def remove(self, step, w, masks):
        floor = 1 if self.wrong == "floor" else None
        scores = {}
        for k in UNITS:
            rows, mask = (x.reshape(-1, UNITS[k]) for x in (np.abs(w[k]), masks[k]))
            number = mask.sum(0) if self.wrong != "umm" else len(mask)
            scores[k] = (rows * mask).sum(0) / np.maximum(number, 1)
            scores[k] *= -1 if self.wrong == "score" else 1
        keep = left(step)
        least = {k: floor or int(n * (1 - GONE) * FLOOR) for k, n in UNITS.items()}
        live = {k: np.flatnonzero(x) for k, x in self.live.items()}
        safe = {k: best(scores[k], live[k], least[k]) for k in UNITS}
        rest = {k: [i for i in live[k] if i not in safe[k]] for k in UNITS}
        others = ranked(scores, rest, keep - sum(map(len, safe.values())))
        self.live = {k: mask_of((UNITS[k],), safe[k] + others[k]) for k in UNITS}

    def change(self, step, w, g, masks):
        if step in REMOVALS:
            self.remove(step, w, masks)
        allowed = self.within()
        new = {k: masks[k] & allowed[k] for k in masks}
        if step % INTERVAL == 0:
            new |= self.exchange(step, w, g, {k: new[k] for k in WEIGHTS}, allowed)
        return new

    def exchange(self, step, w, g, masks, allowed):
        size = {k: np.abs(w[k]) for k in WEIGHTS}
        slope = {k: np.abs(g[k]) for k in WEIGHTS}
        if self.wrong == "drop":
            size = {k: -x for k, x in size.items()}
        if self.wrong == "grow":
            slope = {k: -x for k, x in slope.items()}
        total = kept = min(sum(int(m.sum()) for m in masks.values()), NUMBER)
        if step < STOP:
            total = NUMBER + whole(cosine(0.05, step, STOP) * np.float32(SIZE))
        else:
            share = cosine(0.5, step, STEPS, 0.005) * np.float32(NUMBER)
            assert abs(share - round(float(share))) > 1e-4
            kept, total = kept - int(share), NUMBER
        live = {k: np.flatnonzero(m) for k, m in masks.items()}
        first = {k: best(size[k], live[k], 1) for k in WEIGHTS}
        rest = {k: [i for i in live[k] if i not in first[k]] for k in WEIGHTS}
        stay = ranked(size, rest, kept - sum(map(len, first.values())))
        stay = {k: {*first[k], *stay[k]} for k in WEIGHTS}
        room = {
            k: [
                i
                for i in range(masks[k].size)
                if i not in stay[k] and (allowed[k].flat[i] or self.wrong == "within")
            ]
            for k in WEIGHTS
        }
        grown = ranked(slope, room, total - sum(map(len, stay.values())))
        return {k: mask_of(SHAPES[k], [*stay[k], *grown[k]]) for k in WEIGHTS}


def differences(wrong=""):
    """The first step whose masks differ, and the largest difference of weights."""
    start, (_, w, masks, _) = normal(SHAPES), run()[0]
    sparse = {k: masks[k] for k in (*WEIGHTS, "c")}
    rule, largest = Replica(wrong), 0.0
    replica = train_in_numpy(
        start,
        w,
        sparse,
        STEPS,
        lambda step: step in REMOVALS or (step > 0 and step % INTERVAL == 0),
        rule.change,
    )
    for (step, params, held, memory), (_, expected, wanted) in zip(
        run()[1:], replica, strict=True
    ):
        units = zip(memory.rule, rule.live.values(), strict=True)
        if any(np.any(held[k] != wanted[k]) for k in sparse):
            return step, largest
        if any(np.any(a != b) for a, b in units):
            return step, largest
        largest = max(largest, *(np.abs(params[k] - expected[k]).max() for k in SHAPES))
    return None, largest


@pytest.mark.quick
def test_three_hundred_steps_equal_the_numpy_replica():
    step, largest = differences()
    assert step is None
    # Rounding, which momentum carries over steps.
    assert largest < 1e-5


@pytest.mark.parametrize("wrong", ["score", "umm", "floor", "drop", "grow", "within"])
def test_a_wrong_rule_has_other_masks(wrong):
    assert differences(wrong)[0] is not None


def test_both_budgets_are_exact_and_units_never_return():
    before = [np.ones(n, bool) for n in UNITS.values()]
    for step, _, masks, memory in run():
        assert not any(
            np.any(new & ~old) for new, old in zip(memory.rule, before, strict=True)
        )
        before = memory.rule
        assert sum(int(x.sum()) for x in memory.rule) == left(step)
        sparse = [masks[k] for k in SHAPES if masks[k].ndim]
        assert memory.live.tolist() == [int(m.sum()) for m in sparse]
        if step > 0 and step % INTERVAL == 0:
            extra = whole(0.05 * SIZE * (1 + np.cos(np.pi * step / STOP)) / 2)
            wanted = NUMBER + (extra if step < STOP else 0)
            assert sum(int(masks[k].sum()) for k in WEIGHTS) == wanted
    assert left(REMOVALS[-1]) == 11
    # Each keeps half of its units at least.
    assert [int(x.sum()) for x in memory.rule] == [5, 6]
    held = jax.tree.map(np.array, run()[-1][2])
    cut = zs.sparsity.removable(normal(SHAPES), held, GROUPS)
    assert cut["c"] >= 3 * (~memory.rule[1]).sum() > 0


def test_a_removal_that_nan_prevented_is_made_up_for():
    params = {k: jnp.asarray(x) for k, x in normal(SHAPES).items()}
    method = chase()

    @functools.partial(jax.jit, compiler_options=FAST)
    def change(params):
        return method.change(method.init(params), params, params, jnp.int32(181))

    assert sum(int(x.sum()) for x in change(params).memory.rule) == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit_sparsity": 0.95}, "keeps 1 units, but 2 layers need 2"),
        ({"unit_score": "l1"}, "unit_score='l1' is unknown"),
        ({"groups": {"one": Units("b")}}, "one: chase ranks units by their incoming"),
        ({"groups": {}}, "groups must map names"),
        ({"extra": 2}, "extra=2"),
        ({"interval": 0}, "interval=0"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        chase(**options).init(normal(SHAPES))
