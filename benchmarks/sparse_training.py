"""The trainings of the sparse grid: a small network on CIFAR-10, by every method.

One program serves all seeds and radii, and methods and sparsities that come to one.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from zosam_jax import data
from zosam_jax.data import augment
from zosam_jax.models.convolution import conv_general_dilated

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH = 0.1, 0.9, 5e-4, 128
SCORED = 512  # images that SNIP and GraSP see
LOTTERY, REWIND = "LT", 0.05
AUGMENT_STREAM = np.uint32(0xFFFFFFF0)

GRADIENTS: dict[str, Callable[..., Any]] = {
    "sgd": lambda _, __, **aux: zs.backprop(**aux),
    "zosam": lambda rho, seed, **aux: zs.zosam(rho, seed=seed, **aux),
    "guided": lambda rho, seed, **aux: zs.zosam(
        rho, seed=seed, directions="guided", **aux
    ),
}


class Given(NamedTuple):
    """The inputs of a method's constructor.

    Attributes:
      sparsity: Sparsity over the sparse leaves together.
      steps: Steps of the whole training.
      seed: Seed of the random draws of the method.
      loss: `(params, temperature=1) -> loss` on some training images.
      flow: `params -> sum of the logits` of an image of ones.
    """

    sparsity: float
    steps: int
    seed: Any
    loss: Callable[..., Any]
    flow: Callable[..., Any]

    @property
    def interval(self) -> int:
        """Steps between changes: 40 in the whole training."""
        return max(1, self.steps // 40)


def _static(criterion: str, **options: Any) -> Callable[[Given], Any]:
    return lambda g: zs.sparsity.static(
        g.sparsity, criterion, seed=g.seed, **{k: f(g) for k, f in options.items()}
    )


def _dynamic(name: str, **options: Any) -> Callable[[Given], Any]:
    """RigL and its like: a change every `interval` steps up to 75 % of the training."""

    def make(g: Given) -> Any:
        method = getattr(zs.sparsity, name)
        return method(g.sparsity, g.steps, interval=g.interval, seed=g.seed, **options)

    return make


def _scheduled(name: str, **options: Any) -> Callable[[Given], Any]:
    """A method with a schedule of its own."""
    return lambda g: getattr(zs.sparsity, name)(
        g.sparsity, g.steps, seed=g.seed, **options
    )


# Budgets: ERK, but for those that rank all layers together by definition.
METHODS: dict[str, Callable[[Given], Any]] = {
    "random": _static("random"),
    "magnitude": _static("magnitude"),
    "SNIP": _static("snip", value_fn=lambda g: g.loss),
    # The authors' code divides the logits by 200.
    "GraSP": _static("grasp", value_fn=lambda g: functools.partial(_hot, g.loss)),
    "SynFlow": _static("synflow", value_fn=lambda g: g.flow),
    "SET": _dynamic("set_"),
    "DSR": lambda g: zs.sparsity.dsr(
        g.sparsity,
        g.steps,
        interval=max(1, g.steps // 80),
        budget="erk",
        seed=g.seed,
    ),
    "RigL": _dynamic("rigl"),
    "MEST, EM": _scheduled("mest", budget="erk"),
    "MEST, EM&S": _scheduled("mest", budget="erk", soft=True),
    "ITOP": _scheduled("itop"),
    "SViTE": _scheduled("svite"),
    "SRigL": _dynamic("srigl"),
    "GMP": _dynamic("gmp"),
    "STE": lambda g: zs.sparsity.ste(g.sparsity),
    "SR-STE": lambda g: zs.sparsity.ste(g.sparsity, decay=2e-4),
}


def _hot(loss: Callable[..., Any], params: Any) -> Any:
    return loss(params, 200.0)


def available() -> dict[str, Callable[[Given], Any]]:
    """The methods that this version of the library has."""
    found = {}
    for name, make in METHODS.items():
        try:
            make(Given(0.9, 100, 0, lambda p: p, lambda p: p))
        except (AttributeError, ValueError) as error:
            print(f"{name}: not available ({error})", flush=True)
        else:
            found[name] = make
    return found


class PatchNet(nn.Module):
    """A residual network of 93,834 parameters whose gradients are fast on one core.

    Patches of 4x4 pixels and later of 2x2 positions are merged by matrices; between
    them stand 3x3 convolutions, each with a shortcut.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images `[N, 32, 32, 3]` to logits `[N, 10]`."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        for patch, channels, blocks in ((4, 32, 1), (2, 64, 2)):
            n, h, w, c = x.shape
            x = x.reshape(n, h // patch, patch, w // patch, patch, c)
            x = x.swapaxes(2, 3).reshape(n, h // patch, w // patch, patch * patch * c)
            x = nn.relu(norm(nn.Dense(channels, use_bias=False)(x)))
            for _ in range(blocks):
                conv = nn.Conv(
                    channels,
                    (3, 3),
                    padding=((1, 1), (1, 1)),
                    use_bias=False,
                    conv_general_dilated=conv_general_dilated,
                )
                x = nn.relu(x + norm(conv(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class State(NamedTuple):
    """All that changes in a training, and all that tells it from the next one.

    The seed and the radius are in it, so that one program serves them all.
    """

    step: jax.Array
    seed: jax.Array
    rho: jax.Array
    params: Any
    model_state: Any
    opt_state: Any


class Training(NamedTuple):
    """Method, estimator, ...; the last `held_out` training images are not seen."""

    name: str
    gradient: str
    sparsity: float
    seed: int
    rho: float
    held_out: int = 0


class Trainer:
    """Trains; compiles a program once for all trainings that it serves."""

    def __init__(self, steps: int, data_dir: str | None = None):
        self.steps = steps
        found = data.load("cifar10", data_dir)
        if not isinstance(found, data.Dataset):
            raise TypeError("CIFAR-10 is read into memory, not streamed.")
        self.data = found
        self.examples = (
            jnp.asarray(self.data.train_images),
            jnp.asarray(self.data.train_labels),
        )
        self.model = PatchNet()
        self.methods = available() | {LOTTERY: _static("magnitude")}
        self._programs: dict[tuple[str, str, float], Any] = {}
        self._compiled: dict[str, Any] = {}
        self._first: dict[tuple[str, float], Any] = {}
        ones = jnp.ones((1, *self.data.image_shape))
        self._initialize = jax.jit(lambda k: self.model.init(k, ones, train=False))
        self._correct = jax.jit(self._count_correct)

    def logits(self, params: Any, model_state: Any, images: jax.Array) -> Any:
        """`(logits, new statistics)`, by the statistics of the batch."""
        x = augment.normalize(images, self.data.mean, self.data.std)
        return self.model.apply(
            {"params": params, **model_state}, x, train=True, mutable=["batch_stats"]
        )

    def method(
        self, name: str, sparsity: float, seed: Any, model_state: Any, batch: Any
    ) -> Any:
        """A sparse method; some choose their mask by the batch, uint8 and labels."""

        def loss(params: Any, temperature: float = 1.0) -> jax.Array:
            logits, _ = self.logits(params, model_state, batch[0])
            return _cross_entropy(logits / temperature, batch[1])

        def flow(params: Any) -> jax.Array:
            ones = jnp.ones((1, *self.data.image_shape))
            known = {"params": params, **model_state}
            logits: Any = self.model.apply(known, ones, train=False)
            return jnp.sum(logits)

        return self.methods[name](Given(sparsity, self.steps, seed, loss, flow))

    def optimizer(self, method: Any, gradient: str, state: Any) -> Any:
        """SGD with momentum, weight decay and a cosine; the gradient by its name."""
        rate = optax.cosine_decay_schedule(LEARNING_RATE, self.steps)
        rule = optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(rate, MOMENTUM)
        )
        estimator = GRADIENTS[gradient](
            state.rho, state.seed, has_aux=True, aux_like=state.model_state
        )
        return zs.sparsify(rule, method, gradient=estimator)

    def _step(
        self,
        name: str,
        gradient: str,
        sparsity: float,
        state: State,
        order: jax.Array,
        examples: tuple[jax.Array, jax.Array],
    ) -> State:
        chosen = order[state.step]
        key = jax.random.fold_in(jax.random.key(state.seed), AUGMENT_STREAM)
        images = augment.random_crop_flip(
            jax.random.fold_in(key, state.step),
            examples[0][chosen],
            self.data.crop_padding,
            self.data.flip,
        )
        labels = examples[1][chosen]

        def value_fn(params: Any) -> Any:
            logits, changed = self.logits(params, state.model_state, images)
            return _cross_entropy(logits, labels), dict(changed)

        method = self.method(
            name, sparsity, state.seed, state.model_state, (images, labels)
        )
        tx = self.optimizer(method, gradient, state)
        updates, opt_state = tx.update(
            None, state.opt_state, state.params, value_fn=value_fn
        )
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=zs.estimate(opt_state).aux,
            opt_state=opt_state,
        )

    def program(
        self, name: str, gradient: str, sparsity: float, state: State, order: jax.Array
    ) -> Any:
        """`(state, order, examples, stop) -> state at step stop`, compiled."""

        def run(state: State, order: Any, examples: Any, stop: Any) -> State:
            return jax.lax.while_loop(
                lambda s: s.step < stop,
                lambda s: self._step(name, gradient, sparsity, s, order, examples),
                state,
            )

        key = name, gradient, sparsity
        if key not in self._programs:
            lowered = jax.jit(run).lower(state, order, self.examples, jnp.int32(0))
            text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
            if text not in self._compiled:
                self._compiled[text] = lowered.compile()
            self._programs[key] = self._compiled[text]
        return self._programs[key]

    def start(self, training: Training) -> tuple[State, jax.Array]:
        """The state before the first step, and the training images of every step."""
        name, gradient, sparsity, seed, rho, held_out = training
        rng = np.random.default_rng(seed)
        count = len(self.examples[1]) - held_out
        epochs = -(-self.steps * BATCH // count)
        drawn = np.concatenate([rng.permutation(count) for _ in range(epochs)])
        drawn = drawn[: self.steps * BATCH].reshape(self.steps, BATCH)
        order = jnp.asarray(drawn, jnp.int32)
        model_state = dict(self._initialize(jax.random.key(seed)))
        params = model_state.pop("params")
        first = self._first.setdefault(
            (name, sparsity),
            jax.jit(
                lambda seed, params, *rest: self.method(
                    name, sparsity, seed, *rest
                ).init(params)
            ),
        )
        few = order[: SCORED // BATCH].reshape(-1)
        batch = jax.tree.map(lambda x: x[few], self.examples)
        topology = first(jnp.int32(seed), params, model_state, batch)
        zero = jnp.zeros((), jnp.int32)
        state = State(zero, zero + seed, jnp.float32(rho), params, model_state, ())
        known = zs.sparsity.SparseMethod(lambda _: topology)
        opt_state = self.optimizer(known, gradient, state).init(params)
        opt_state = opt_state._replace(memory=topology.memory)
        return on_masks(state._replace(opt_state=opt_state), topology.masks), order

    def train(self, training: Training) -> State:
        """The state at the end of a training."""
        state, order = self.start(training)
        run = self.program(*training[:3], state, order)
        return run(state, order, self.examples, jnp.int32(self.steps))

    def lottery(
        self, gradient: str, sparsities: Sequence[float], seed: int, rho: float
    ) -> Iterator[tuple[float, State]]:
        """Trains, prunes the smallest weights of all layers together, rewinds.

        Weights, statistics and the optimizer's state go back to `REWIND` of the steps
        of the dense training (arXiv:1912.05671). Yields the end of every round.
        """
        state, order = self.start(Training(LOTTERY, gradient, 0.0, seed, rho))
        run = self.program(LOTTERY, gradient, 0.0, state, order)
        last = jnp.int32(self.steps)
        early = run(state, order, self.examples, jnp.int32(REWIND * self.steps))
        state = run(early, order, self.examples, last)
        yield 0.0, state
        for sparsity in sparsities:
            # A pruned weight is 0, and so among the smallest again.
            rule = zs.sparsity.static(sparsity, "magnitude", budget="global")
            masks = rule.init(state.params).masks
            state = run(on_masks(early, masks), order, self.examples, last)
            yield sparsity, state

    def accuracy(self, state: State, split: str = "test", held_out: int = 0) -> float:
        """The share of images classified right, as they are: test or held out."""
        masks = zs.sparsity.masks(state.opt_state)
        params = zs.sparsity.apply_masks(state.params, masks)
        if split == "test":
            images, labels = self.data.test_images, self.data.test_labels
        else:
            images = self.data.train_images[-held_out:]
            labels = self.data.train_labels[-held_out:]
        correct = [
            self._correct(params, state.model_state, images[i:j], labels[i:j])
            for i, j in itertools.pairwise(range(0, len(labels) + 1, 1000))
        ]
        return sum(map(int, correct)) / len(labels)

    def _count_correct(
        self, params: Any, model_state: Any, images: jax.Array, labels: jax.Array
    ) -> jax.Array:
        x = augment.normalize(images, self.data.mean, self.data.std)
        known = {"params": params, **model_state}
        logits: Any = self.model.apply(known, x, train=False)
        return jnp.sum(logits.argmax(-1) == labels)


def on_masks(state: State, masks: Any) -> State:
    """The state with its weights and its masks on these masks."""
    return state._replace(
        params=zs.sparsity.apply_masks(state.params, masks),
        opt_state=state.opt_state._replace(masks=masks),
    )


def live(state: State) -> tuple[int, int, int]:
    """Live weights of the sparse leaves, all weights of these, all parameters."""
    masks = jax.tree.leaves(zs.sparsity.masks(state.opt_state))
    sparse = [m for m in masks if m.ndim]
    return (
        sum(int(m.sum()) for m in sparse),
        sum(m.size for m in sparse),
        zs.tree.size(state.params),
    )


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
