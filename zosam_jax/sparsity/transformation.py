"""Sparse training around any Optax optimizer."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._programs import finite, once
from zosam_jax._types import (
    Decoupled,
    EstimatorState,
    Grads,
    Masks,
    Memory,
    OptState,
    Params,
    PyTree,
    ValueFn,
)
from zosam_jax.sparsity import compatibility
from zosam_jax.sparsity.mask_trees import landing, restricted, sparsity_of
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.moments import mean_second_moments, reset_moments
from zosam_jax.sparsity.packing import PackedMasks, pack, unpack


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      step: Optimizer steps taken, int32.
      masks: Mask tree; with `packed=True` a packed one, which `masks(state)` unpacks.
      memory: What the method carries along: exact integer targets, thresholds.
      explored: Union of all masks until now, packed likewise; () if not tracked.
      inner: State of the inner optimizer.
      gradient: State of the gradient estimator; () without one.
      accumulated: `(number of micro-batches since the last step, their mean gradient,
        their mean loss)`, the loss with `gradient` only; () without accumulation.
    """

    step: jax.Array
    masks: Masks | PackedMasks
    memory: Memory
    explored: Masks | PackedMasks
    inner: OptState
    gradient: OptState
    accumulated: PyTree


def sparsify(
    inner: optax.GradientTransformation,
    method: SparseMethod,
    gradient: optax.GradientTransformationExtraArgs | None = None,
    *,
    accumulate_steps: int = 1,
    grown_second_moment: str = "fresh",
    packed: bool = False,
    track_exploration: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sparse training with any optimizer: masks are state, updates land on them.

    Each update

    1. takes the gradient with `gradient`, on the masks;
    2. changes the topology by the dense gradient, if the method says so in this step
       (a `lax.cond` branch), and resets the optimizer's moments of dropped and grown
       weights;
    3. steps `inner` with the masked gradient;
    4. emits updates after which every pruned weight is exactly 0. So keep it outermost:
       what follows it in a chain may move pruned weights. A pruned weight that was NaN
       or infinite stays NaN, since nothing added to it gives 0; `apply_masks` does.

    A straight-through method (`ste`) trains the pruned weights too: `params` are dense,
    no moments are reset, and the gradient is taken at the masked parameters. The masks
    are chosen after the step, so `masks(state)` belong to `params` (with
    `ste(interval=)` above 1, to the parameters of the last choice). `safe` too changes
    the topology after the step. Both add a penalty's gradient to the one that is given;
    `value=` is the loss without it. With `chex`, `params` are dense too: a pruned
    weight stays there as it was, and does not train.

    With `gradient`, the optimizer is given the loss of the estimate as `value=`, the
    masked gradient as `grad=`, and the loss without aux, a function of the parameters,
    as `value_fn=`, and Sophia on the masks as `obj_fn=`. Arguments of the call go
    before. So optimizers that need them work: `optax.polyak_sgd`, `optax.lbfgs`, line
    searches, `optax.contrib.momo`, `reduce_on_plateau` and `sophia`. Without
    `gradient`, give them in the call. With `accumulate_steps`, `value` is the mean over
    the micro-batches, and the functions belong to the last one.

    Start with `state = tx.init(params)` and
    `params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))`, the latter not
    with `ste` and `chex`.

    Args:
      inner: The optimizer. Gradient clipping inside it sees live weights only.
      method: From `zs.sparsity`: `rigl`, `set_`, `static`, ...
      gradient: A gradient estimator, such as `zs.zosam(...)`; it is given `value_fn`
        and the masks. None: `updates` is the gradient with respect to every weight, as
        `jax.grad` gives it at the masked parameters.
      accumulate_steps: Number of updates whose gradients are averaged into one
        optimizer step. All updates but the last of these are zero. Schedules of the
        optimizer and of `rho` count optimizer steps. An `optax.inject_hyperparams`
        around `sparsify` counts updates, and so do its schedules.
      grown_second_moment: "fresh": grown weights have the second moment of a new
        optimizer, 0, as is usual. Adam then moves them by 3 to 6.5 learning rates in
        each of their first 40 steps, since it corrects the bias of old moments. "mean":
        they have the mean over the live weights of their layer, and move as these do.
        See `zs.sparsity.mean_second_moments`. In short trainings with AdamW, "mean"
        gave a language model a higher loss and made no difference to a ViT
        (`benchmarks/README.md`). It has no effect on optimizers without second
        moments, such as SGD and Lion, nor with `ste`.
      packed: Keep the masks in the state in one bit a weight instead of one byte. They
        are unpacked in every update.
      track_exploration: Remember which weights were ever live, for `exploration`.

    Returns:
      A transformation whose state is a `SparsifyState`.

    Raises:
      ValueError: On update, without params, or without a gradient of either kind.
      ValueError: At init, if the method grows by a gradient that `gradient` does not
        estimate, or a schedule in `gradient` counts estimates and `accumulate_steps`
        of them make one step.
      ValueError: The method would change the masks of a leaf that `inner` never trains;
        a wrapper of Optax that does not fit stands around `sparsify`
        (`optax.lookahead`, `apply_if_finite`, `conditionally_mask` or
        `conditionally_transform`).
      TypeError: `inner` or `gradient` is no Optax transformation, `method` is no
        method, or, at init, `inner` holds `optax.MultiSteps`, `optax.lookahead` or an
        estimator.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> loss = lambda w: jnp.sum((w - 1.0) ** 2)
      >>> tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl(0.75, 1000), zs.zosam(0.05))
      >>> w = jnp.ones((4, 4))
      >>> state = tx.init(w)
      >>> w = zs.sparsity.apply_masks(w, zs.sparsity.masks(state))
      >>> updates, state = tx.update(None, state, w, value_fn=loss)
      >>> w = optax.apply_updates(w, updates)
      >>> print(int(jnp.sum(w != 0)))
      4
    """
    compatibility.check_transformations(inner, method, gradient)
    _check.whole("accumulate_steps", accumulate_steps)
    _check.flags(packed=packed, track_exploration=track_exploration)
    _check.one_of("grown_second_moment", grown_second_moment, ("fresh", "mean"))
    inner = optax.with_extra_args_support(inner)
    if gradient is not None:
        gradient = optax.with_extra_args_support(gradient)
    step = _Step(inner, method, packed, grown_second_moment == "mean")
    hold = step.hold

    def init(params: Params) -> SparsifyState:
        compatibility.check_callers(gradient, params)
        estimator = () if gradient is None else gradient.init(params)
        compatibility.check_estimator(method, estimator, accumulate_steps)
        topology = method.init(params)
        moments = inner.init(step.network(params, topology.masks))
        compatibility.check_inner(moments)
        explored = ()
        if track_exploration:
            # Copies: a donated state may not hold an array twice.
            explored = hold(jax.tree.map(jnp.copy, topology.masks))
        return SparsifyState(
            step=jnp.zeros((), jnp.int32),
            masks=hold(topology.masks),
            memory=topology.memory,
            explored=explored,
            inner=moments,
            gradient=estimator,
            accumulated=(
                _nothing_yet(params, estimator) if accumulate_steps > 1 else ()
            ),
        )

    def update(
        updates: Grads,
        state: OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, OptState]:
        if params is None:
            raise ValueError(
                "zs.sparsify needs params: tx.update(grads, state, params)."
            )
        compatibility.check_callers(gradient, params, updates)
        masks = unpack(state.masks)
        value = None
        if gradient is None:
            grads = updates
        else:
            grads, gradient_state = gradient.update(
                updates,
                state.gradient,
                step.seen(params, masks),
                **{**extra_args, "masks": masks, "optimizer_step": state.step},
            )
            state = state._replace(gradient=gradient_state)
            value = _value(gradient_state)
        compatibility.check_gradient(grads, params, accumulate_steps)
        if accumulate_steps == 1:
            told = _told(extra_args, value)
            return step(grads, state, masks, params, told)

        count, *mean = state.accumulated
        # A running mean: a sum of many bfloat16 gradients could overflow.
        mean = jax.tree.map(
            lambda m, g: m + ((g - m) / (count + 1).astype(m.dtype)).astype(m.dtype),
            tuple(mean),
            (_wide(grads), () if value is None else value),
        )
        emit = count + 1 == accumulate_steps

        def take(
            mean: PyTree, state: SparsifyState, masks: Masks, params: Params
        ) -> tuple[Grads, SparsifyState]:
            grads = jax.tree.map(lambda m, g: m.astype(g.dtype), mean[0], params)
            told = _told(extra_args, None if value is None else mean[1])
            updates, state = step(grads, state, masks, params, told)
            zeros = jax.tree.map(jnp.zeros_like, mean)
            return updates, state._replace(accumulated=(jnp.zeros_like(count), *zeros))

        def wait(
            mean: PyTree, state: SparsifyState, masks: Masks, params: Params
        ) -> tuple[Grads, SparsifyState]:
            shapes, _ = jax.eval_shape(take, mean, state, masks, params)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return zeros, state._replace(accumulated=(count + 1, *mean))

        return jax.lax.cond(emit, take, wait, mean, state, masks, params)

    return optax.GradientTransformationExtraArgs(init, update)


class _Step:
    """An optimizer step on the masks, with a change of topology where one is due."""

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        method: SparseMethod,
        packed: bool,
        mean_for_grown: bool,
    ):
        self.inner, self.method, self.packed = inner, method, packed
        self.mean_for_grown = mean_for_grown
        self.trained: set[Hashable] = set()

    def hold(self, masks: Masks) -> Masks | PackedMasks:
        """Returns the masks as the state holds them."""
        return pack(masks) if self.packed else masks

    def network(self, params: Params, masks: Masks) -> Params:
        """Returns the parameters that the optimizer moves."""
        return params if self.method.straight_through else tree.mask(params, masks)

    def seen(self, params: Params, masks: Masks) -> Params:
        """Returns the parameters at which the gradient is taken."""
        return tree.mask(params, masks) if self.method.pruned_in_params else params

    def __call__(
        self,
        grads: Grads | Decoupled,
        state: SparsifyState,
        masks: Masks,
        params: Params,
        extra_args: dict[str, Any],
    ) -> tuple[Grads, SparsifyState]:
        """Returns the updates and the state after the step; `masks` are the state's."""
        method, dense = self.method, _main(grads)
        if not method.after_step:
            state, masks = self._rewired(dense, state, masks, params)
        given = grads
        if method.penalty is not None:
            topology = Topology(masks, state.memory)
            given = _plus(given, method.penalty(topology, params, state.step))
        if not method.straight_through:
            given = _by_part(lambda part: restricted(part, masks), given)
        network = self.network(params, masks)
        told = _on_masks(extra_args, _main(given), masks, state.inner)
        self._check_trained(given, state.inner, network, masks, told)
        updates, moments = self.inner.update(given, state.inner, network, **told)
        state = state._replace(inner=moments)
        if method.after_step:
            new = optax.apply_updates(params, updates)
            state, masks = self._rewired(dense, state, masks, new)
        if method.keeps_pruned:
            updates = restricted(updates, masks)
        elif not method.straight_through:
            updates = landing(updates, params, masks)
        return updates, state._replace(step=optax.safe_increment(state.step))

    def _check_trained(
        self,
        given: Grads | Decoupled,
        moments: OptState,
        network: Params,
        masks: Masks,
        told: dict[str, Any],
    ) -> None:
        """Raises `ValueError` if the topology of a leaf changes that never trains."""
        sparse = tuple(not tree.is_dense(m) for m in jax.tree.leaves(masks))
        facts = jax.tree.structure(masks), sparse
        # The answer does not depend on values, so it is asked once, not in every step.
        if self.method.change is None or facts in self.trained:
            return
        if self.method.straight_through:
            return

        def update(grads: Grads) -> Grads:
            replaced = grads
            if isinstance(given, Decoupled):
                replaced = given._replace(grad=grads)
            return self.inner.update(replaced, moments, network, **told)[0]

        compatibility.check_trained(update, _main(given), masks)
        self.trained.add(facts)

    def _rewired(
        self, grads: Grads, state: SparsifyState, masks: Masks, params: Params
    ) -> tuple[SparsifyState, Masks]:
        """Returns state and masks after a change of topology, if one is due.

        What passes through the conditional is what the state holds; packed masks pass
        beside the unpacked ones, so that only a change packs and unpacks.
        """
        if self.method.fires is None:
            return state, masks
        held = state.masks if self.packed else ()

        def changed(
            grads: Grads, state: SparsifyState, held: PyTree, params: Params
        ) -> tuple[SparsifyState, PyTree]:
            del held
            state = self._changed(grads, state, params)
            return state, pack(state.masks) if self.packed else ()

        state, held = jax.lax.cond(
            self.method.fires(state.step),
            changed,
            lambda _, state, held, __: (state, held),
            *(grads, state._replace(masks=masks), held, params),
        )
        masks = state.masks
        return state._replace(masks=held if self.packed else masks), masks

    def _changed(
        self, grads: Grads, state: SparsifyState, params: Params
    ) -> SparsifyState:
        """Returns the state after a change; its masks are unpacked before and after."""
        # From a copy. Nothing else reads the masks of the state, so XLA writes the new
        # ones over them, and a step without a change does not copy them, twice.
        method, old = self.method, _copied(state.masks)
        assert method.change is not None
        before = Topology(old, state.memory)
        new = method.change(before, params, grads, state.step)
        if method.dense_gradient_every is not None and not method.straight_through:
            # A gradient with NaN ranks nothing, so nothing changes. (A straight-through
            # method ranks weights, and its masks follow `params` in any case.)
            sound = finite(jax.tree.leaves(grads))
            new = Topology(
                jax.tree.map(
                    lambda a, b: b if tree.is_dense(b) else jnp.where(sound, a, b),
                    new.masks,
                    old,
                ),
                tree.where(sound, new.memory, before.memory),
            )
        if not method.straight_through:
            changed = jax.tree.map(jnp.logical_xor, new.masks, old)
            # By the optimizer's own `init`: zeros are not always its first state.
            fresh = self.inner.init(tree.mask(params, new.masks))
            moments = reset_moments(state.inner, fresh, changed)
            if self.mean_for_grown:
                moments = mean_second_moments(moments, old, new.masks, method.stacked)
            state = state._replace(inner=moments)
        if jax.tree.leaves(state.explored):
            ever = jax.tree.map(jnp.logical_or, unpack(state.explored), new.masks)
            state = state._replace(explored=self.hold(ever))
        return state._replace(masks=new.masks, memory=new.memory)


def _copied(masks: Masks) -> Masks:
    """Returns a mask tree whose masks of sparse leaves are copies."""
    leaves, structure = jax.tree.flatten(masks)
    copies = iter(once([m for m in leaves if not tree.is_dense(m)]))
    return structure.unflatten(
        [m if tree.is_dense(m) else next(copies) for m in leaves]
    )


def _nothing_yet(params: Params, estimator: OptState) -> tuple[Any, ...]:
    """Returns the accumulated gradient and loss before the first micro-batch."""
    zeros = jax.tree.map(jnp.zeros_like, _wide(params))
    value = () if _value(estimator) is None else jnp.zeros((), jnp.float32)
    return jnp.zeros((), jnp.int32), zeros, value


def _wide(values: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(tree.wide_dtype(x.dtype)), values)


def _value(estimator: OptState) -> jax.Array | None:
    """Returns the loss of the last estimate; None if the state does not say."""
    found = tree.nodes(estimator, EstimatorState)
    return found[0].value if found else None


def _told(extra_args: dict[str, Any], value: jax.Array | None) -> dict[str, Any]:
    """Returns the extra arguments with the loss of the estimate, if there is one.

    Args:
      extra_args: The extra arguments of the call, which go before.
      value: The loss of the estimate; None without one.
    """
    if value is None:
        return extra_args
    told = {"value": value, "grad": None, **extra_args}
    if "value_fn" in told:
        told["value_fn"] = _without_aux(told["value_fn"])
    return told


def _without_aux(value_fn: ValueFn) -> ValueFn:
    def loss(params: Params) -> jax.Array:
        result = value_fn(params)
        return result[0] if isinstance(result, tuple) else result

    return loss


def _on_masks(
    told: dict[str, Any], grads: Grads, masks: Masks, moments: OptState
) -> dict[str, Any]:
    """Returns the extra arguments with gradient and objective on the masks.

    Args:
      told: What `_told` returns.
      grads: The masked gradient.
      masks: Mask tree of this step.
      moments: State of the optimizer.
    """
    told = dict(told)
    if "grad" in told:
        told["grad"] = grads
    # Where it is wanted only: line searches refuse arguments that they do not use.
    if tree.nodes(moments, optax.contrib.HutchinsonState) and "value_fn" in told:
        told.setdefault("obj_fn", told["value_fn"])
    objective = told.get("obj_fn")
    if callable(objective):
        # Derivatives by pruned weights are 0, so that no curvature gathers there.
        told["obj_fn"] = lambda params: objective(tree.mask(params, masks))
    return told


def masks(state: OptState) -> Masks:
    """Returns the mask tree held in an optimizer state.

    Args:
      state: An Optax state with `sparsify` anywhere inside it. If
        `optax.multi_transform` gives several `sparsify` their own leaves, their masks
        are put together. Leaves of other optimizers stay `optax.MaskedNode()`, which
        `apply_masks` treats as dense.

    Returns:
      A tree like the parameters: boolean arrays, scalar True for dense leaves.

    Raises:
      ValueError: The state holds no `sparsify`, or two for the same leaf.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5, "magnitude"))
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.ones(2)}
      >>> masks = zs.sparsity.masks(tx.init(params))
      >>> print(masks["kernel"].sum(), masks["bias"])
      2 True
    """
    found = tree.nodes(state, SparsifyState)
    if not found:
        raise ValueError(
            "The state holds no masks: pass the state of an optimizer made by "
            "zs.sparsify(...)."
        )
    return functools.reduce(_merge, [unpack(x.masks) for x in found])


def exploration(state: OptState) -> jax.Array:
    r"""Returns ITOP's exploration rate: the fraction of weights that were ever live.

    .. math:: R_s = \frac{|\cup_t m_t|}{N}

    over the sparse leaves (arXiv:2102.02887, section 3.2), float32 scalar.

    Args:
      state: An Optax state with `sparsify(..., track_exploration=True)` inside it.

    Raises:
      ValueError: The state does not track what was explored.
    """
    return 1 - sparsity_of(explored(state))


def explored(state: OptState) -> Masks:
    """Returns the union of all masks until now, a mask tree.

    Args:
      state: As in `exploration`.

    Raises:
      ValueError: As in `exploration`.
    """
    # A bare mask array compares with no tuple.
    found = [
        x.explored
        for x in tree.nodes(state, SparsifyState)
        if jax.tree.leaves(x.explored)
    ]
    if not found:
        raise ValueError(
            "The state does not track what was explored. Say "
            "zs.sparsify(..., track_exploration=True)."
        )
    return functools.reduce(_merge, map(unpack, found))


def _merge(a: PyTree, b: PyTree) -> PyTree:
    """Merges two trees, each of which is `optax.MaskedNode` where the other is not."""
    if isinstance(a, optax.MaskedNode):
        return b
    if isinstance(b, optax.MaskedNode):
        return a
    if jax.tree_util.all_leaves([a]):
        raise ValueError(
            "The state holds several masks of one leaf: pass the state of one "
            "zs.sparsify(...), or of several that each have leaves of their own."
        )
    children, treedef = jax.tree.flatten(a, is_leaf=lambda x: x is not a)
    others = jax.tree.leaves(b, is_leaf=lambda x: x is not b)
    return jax.tree.unflatten(treedef, map(_merge, children, others))


def _main(grads: Grads | Decoupled) -> Grads:
    """Returns the gradient that the optimizer steps along."""
    return grads.grad if isinstance(grads, Decoupled) else grads


def _by_part(
    function: Callable[[Grads], Grads], grads: Grads | Decoupled
) -> Grads | Decoupled:
    """Applies a function to the gradient, or to both parts of a decoupled one."""
    if isinstance(grads, Decoupled):
        return Decoupled(*map(function, grads))
    return function(grads)


def _plus(grads: Grads | Decoupled, penalty: Grads) -> Grads | Decoupled:
    """Returns the gradient that the optimizer steps along plus a penalty's."""
    moved = tree.add_scaled(_main(grads), 1.0, penalty)
    return grads._replace(grad=moved) if isinstance(grads, Decoupled) else moved
