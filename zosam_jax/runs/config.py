"""The configuration of a training run: one flat, frozen, checked record."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zosam_jax import _check
from zosam_jax.sparsity import budgets as zs_budgets
from zosam_jax.train import gradients, methods, option_strings

DTYPES = ("float32", "bfloat16")
METHODS = methods.NAMES
BUDGETS = ("auto", *zs_budgets.BUDGETS, "global")
GRADIENTS = gradients.NAMES
OPTIMIZERS = ("sgd", "adamw", "lion", "rmsprop", "adafactor")
SCHEDULES = ("cosine", "step", "constant")
DECAYS = ("all", "kernels")
LOOPS = ("auto", "scan", "steps")

# What says how masks are made, which lottery tickets replace.
METHOD_FIELDS = frozenset(
    {
        "method",
        "budget",
        "ticket",
        "update_interval",
        "drop_fraction",
        "stop_fraction",
        "method_options",
    }
)

# A run may be continued with other values of these: none changes the numbers.
HOUSEKEEPING = frozenset(
    {
        "data_dir",
        "workers",
        "out",
        "checkpoint_every",
        "keep",
        "log_every",
        "tensorboard",
        "overwrite",
    }
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What is trained, how, and where the run goes.

    The defaults are the preset `digits`. Every value is checked on construction.

    Raises:
      ValueError: A value is unknown or out of range; the message names the field.
    """

    dataset: str = "digits"
    """Data set: digits or pydoc (come with what is installed), cifar10, imagenet2012 \
or any other image classification set of TFDS (`data prepare`), folder:PATH (a folder \
of images for each class) or text:PATH (a file, byte by byte)."""
    data_dir: str | None = None
    """TFDS directory of the prepared data sets. None: TFDS_DATA_DIR, or \
~/tensorflow_datasets."""
    model: str = "resnet20"
    """Network: resnet20, resnet32, resnet44, resnet56, vgg19, wrn22-2, wrn28-10; \
resnet18, resnet34, resnet50; deit-tiny, deit-small, deit-base, vit; mlp; tinylm (for \
text)."""
    width: float = 1.0
    """Multiplier of the layers' widths; sparse-training papers use ResNet-32 at 2."""
    model_options: tuple[str, ...] = ()
    """Options of the model, as in zosam_jax.models.create: NAME=VALUE, as \
stochastic_depth=0.1 or distillation=True for deit-tiny; an unknown one lists those \
there are."""
    dtype: str = "float32"
    """Type that the network computes in: float32 or bfloat16. Parameters, batch \
statistics, losses and norms stay float32."""

    method: str = "rigl"
    """Sparse training: dense (none); random, magnitude, snip, grasp or synflow (masks \
chosen at the start and kept); set, rigl, itop, svite, mest or dsr (dynamic); srigl \
(constant fan-in), nm (n of every m inputs) or units (heads, hidden units, channels); \
gmp (gradual pruning) or ste (straight-through). (A round of `lottery` says ticket.)"""
    sparsity: float = 0.9
    """Share of the sparsified weights that are zero, in [0, 1). Biases and norms are \
dense and do not count. Without effect where the method is dense."""
    budget: str = "auto"
    """How the layers share the sparsity: erk, er, uniform, or global (one threshold \
over all layers; static masks, gmp and ste). auto: the method's own."""
    dense: tuple[str, ...] = ()
    """Further parameters that stay dense: glob patterns on their "/"-joined paths, as \
"stem/*". Those of the model itself are always added."""
    update_interval: int | None = None
    """Optimizer steps between two changes of the mask. None: the method's own, as \
100 for rigl and set."""
    drop_fraction: float | None = None
    """Share of a layer's live weights replaced by the first change. None: the \
method's own, as 0.3 for rigl and set, where it decays by a cosine."""
    stop_fraction: float | None = None
    """Share of the training after which the mask stays as it is. None: the method's \
own, as 0.75 for rigl and set."""
    method_options: tuple[str, ...] = ()
    """Other options of the sparse method, as in its zosam_jax.sparsity constructor: \
NAME=VALUE, as soft=True for mest, decay=2e-4 for ste or n=2 m=4 for nm (layers whose \
inputs m does not divide stay dense); an unknown one lists those there are."""

    ticket: tuple[str, ...] | None = None
    """What a round of `lottery` starts from, in words; `lottery` sets it."""

    gradient: str = "zosam"
    """Gradient: backprop (plain), zosam (sharpness-aware, one backward pass), another \
sharpness-aware method (sam, asam, gsam, fsam, vasso, wsam, esam, looksam, aesam, \
ssam, s2sam, msam, rwp, mrwp, arwp, rst), or zeroth_order (no backward pass)."""
    rho: float | None = None
    """Radius of the perturbation. None: the method's own, as 0.05 for zosam and sam. \
Without effect for backprop and zeroth_order."""
    gradient_options: tuple[str, ...] = ()
    """Other options of the method, as in its zosam_jax constructor: NAME=VALUE, as \
directions=guided num_directions=2 for zosam; an unknown one lists those there are. \
gsam also takes rho_min: its radius follows the learning rate, from rho to rho_min."""
    aux_from: str | None = None
    """Pass that supplies BatchNorm statistics and the training accuracy: ascent (the \
first) or descent (the last). None: the method's own; ascent where the first pass is \
at the weights themselves."""
    probe_fraction: float = 1.0
    """Share of the batch, from its front, that the look uphill sees. Below 1 the \
recorded training loss is that of the descent, at the perturbed weights."""
    probe_dtype: str = "same"
    """Type that the network computes in during the look uphill: float32, bfloat16 or \
same, as `dtype`. Losses and their differences stay float32. The training loss is \
recorded as for probe_fraction."""

    optimizer: str = "sgd"
    """Optimizer: sgd, adamw, lion, rmsprop or adafactor."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop; the others keep Optax's defaults."""
    weight_decay: float = 5e-4
    """Weight decay: added to the gradient for sgd and rmsprop, decoupled for adamw, \
lion and adafactor."""
    nesterov: bool = False
    """Nesterov's momentum instead of the heavy ball, for sgd and rmsprop."""
    decay: str = "all"
    """Parameters that the weight decay is for: all, or kernels (no biases, scales, \
tokens and embeddings)."""
    schedule: str = "cosine"
    """Learning rate after the warm-up: cosine (to final_learning_rate), step (x 0.1 \
at every milestone) or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Of the step schedule: shares of all steps, in rising order."""
    final_learning_rate: float = 0.0
    """Where the cosine ends."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0: no clipping."""
    ema: float = 0.0
    """Decay of the moving average of the weights, as 0.9999, which then is what is \
tested, on the present mask; less in the first steps. 0: no average."""
    batch_size: int = 64
    """Images of a batch, over all local devices together."""
    accumulate_steps: int = 1
    """Batches whose gradients are averaged into one step of the optimizer. All \
schedules count those."""
    epochs: int = 40
    """Passes over the training set; the last, incomplete batch of each is dropped."""
    augment: tuple[str, ...] | None = None
    """What is done to training images, as NAME or NAME=STRENGTH: crop=4 flip \
cutout=16 resized_crop randaugment=9 erasing=0.25 mixup=0.8 cutmix=1. None: the data \
set's own crop and flip. Order and details: zosam_jax.data.augment."""
    label_smoothing: float = 0.0
    """Share of the target that all classes have alike."""
    validation: float = 0.0
    """Share of the training images, the same of every class, held out to choose by. \
The summary then also names the epoch that they choose."""
    teacher: str | None = None
    """Folder of a finished run whose network is distilled: half of the loss is by the \
classes that it sees (arXiv:2012.12877)."""
    image_size: int | None = None
    """Side of the images of a set that is read in batches. None: 224."""
    workers: int = 0
    """Processes that decode such images; 0: this one."""
    seed: int = 0
    """Seed of all that is random: parameters, masks, order, augmentation, zosam."""

    out: str | None = None
    """Folder of the run. None: runs/DATASET-MODEL-METHOD-SPARSITY-GRADIENT-sSEED. The \
same command with the same folder continues the run."""
    checkpoint_every: int = 10
    """Epochs between two checkpoints; the last epoch always leaves one."""
    keep: int = 2
    """Checkpoints kept, newest first."""
    log_every: float = 10.0
    """Seconds between two lines within an epoch where there is no terminal."""
    tensorboard: bool = False
    """Also write TensorBoard scalars (needs tensorboardX)."""
    loop: str = "auto"
    """scan: many steps in one compiled loop; steps: one call a step; auto: steps on \
CPUs, where convolutions in a compiled loop are slow, else scan."""
    overwrite: bool = False
    """Delete a run that is in the folder already and start anew."""

    def __post_init__(self):
        for name, choices in (
            ("dtype", DTYPES),
            ("budget", BUDGETS),
            ("gradient", GRADIENTS),
            ("probe_dtype", ("same", *DTYPES)),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("decay", DECAYS),
            ("loop", LOOPS),
        ):
            _check.one_of(name, getattr(self, name), choices)
        for name in ("batch_size", "epochs", "accumulate_steps"):
            _check.whole(name, getattr(self, name))
        if self.update_interval is not None:
            _check.whole("update_interval", self.update_interval)
        for name in ("checkpoint_every", "keep"):
            _check.whole(name, getattr(self, name))
        _check.whole("seed", self.seed, least=0)
        if self.rho is not None:
            _check.number("rho", self.rho, least=0)
        if self.aux_from is not None:
            _check.one_of("aux_from", self.aux_from, ("ascent", "descent"))
        for name in ("weight_decay", "clip_norm", "log_every", "final_learning_rate"):
            _check.number(name, getattr(self, name), least=0)
        _check.number("probe_fraction", self.probe_fraction, above=0, most=1)
        for name in ("learning_rate", "width"):
            _check.number(name, getattr(self, name), above=0)
        for name in ("sparsity", "momentum", "ema", "label_smoothing", "validation"):
            _check.number(name, getattr(self, name), least=0, below=1)
        for name in ("drop_fraction", "stop_fraction"):
            if getattr(self, name) is not None:
                _check.number(name, getattr(self, name), least=0, most=1)
        _check.number("warmup_epochs", self.warmup_epochs, least=0)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} must be less than epochs="
                f"{self.epochs}. (A preset may have set either.)"
            )
        if self.teacher and Path(self.teacher).expanduser().resolve() == self.folder:
            raise ValueError(
                f"teacher={self.teacher!r} is the folder of this very run. Choose "
                "another --out."
            )
        if (self.method == "ticket") != bool(self.ticket):
            raise ValueError(
                f"method={self.method!r} does not go with ticket={self.ticket!r}: "
                "a ticket is the outcome of earlier rounds. Use `zosam lottery` (or "
                "run_lottery), which sets both."
            )
        self._check_milestones()
        if self.image_size is not None:
            _check.whole("image_size", self.image_size)
        _check.whole("workers", self.workers, least=0)
        option_strings.parse("model_options", self.model_options)
        gradients.check(self)
        methods.check(self, dense_gradient=gradients.is_dense(self))

    def _check_milestones(self) -> None:
        bounds = (self.warmup_epochs / self.epochs, *self.milestones, 1.0)
        step = self.schedule == "step"
        if step and any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"milestones={self.milestones!r} must rise, between the end of the "
                "warm-up and 1: shares of the steps, as 0.5 0.75."
            )

    @property
    def probes(self) -> bool:
        """Whether the look uphill is cheaper than the pass at the perturbed weights."""
        return self.probe_fraction < 1 or self.probe_dtype not in ("same", self.dtype)

    @property
    def folder(self) -> Path:
        """The absolute folder of the run."""
        kind, _, path = self.dataset.partition(":")
        dataset = f"{kind}-{Path(path).name}" if path else kind.replace("/", "-")
        name = f"{dataset}-{self.model}-{self._sparse_name}-{self.gradient}"
        path = Path(self.out or Path("runs", f"{name}-s{self.seed}"))
        return path.expanduser().resolve()

    @property
    def _sparse_name(self) -> str:
        return "dense" if self.method == "dense" else f"{self.method}-{self.sparsity:g}"


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Returns the fields whose values differ and matter, as `{field: (old, new)}`.

    Args:
      old: A configuration as `dataclasses.asdict` or JSON gives it.
      new: Another one.
    """

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    names = [name for name in {**old, **new} if name not in HOUSEKEEPING]
    pairs = {name: (plain(old.get(name)), plain(new.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
