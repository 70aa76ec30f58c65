"""The configuration of a training run: a flat, frozen record of checked values.

It knows types and ranges alone. Names of models, data sets, gradients, sparse methods
and optimizers are text here; `zosam_jax.train.build` looks them up.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import numbers
import textwrap
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from zosam_jax import _check
from zosam_jax.runs import paths
from zosam_jax.runs.files import JSON

T = TypeVar("T")

DTYPES = ("float32", "bfloat16")
PROBE_NORMS = ("batch", "running")
SCHEDULES = ("cosine", "step", "constant")
DECAYS = ("all", "kernels")
FROM_MASKS = ("auto", "keep", "drawn")
NORMALIZATIONS = ("dataset", "imagenet", "half")
LOOPS = ("auto", "scan", "steps")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

# Beyond this, a radius, a rate or a norm is a mistake.
_LARGE = 1e6

PERTURB_FIELDS = ("perturb_from", "perturb_every", "perturb_probability")
"""Which steps a named gradient perturbs."""
GRADIENT_FIELDS = ("rho", "gradient_options", *PERTURB_FIELDS)
"""Fields that a named gradient reads, and a given one does not."""
METHOD_FIELDS = (
    "method",
    "budget",
    "update_interval",
    "drop_fraction",
    "stop_fraction",
    "method_options",
    "block",
    "score_images",
)
"""The fields that describe the sparse method, beside `sparsity` and `dense`."""

HOUSEKEEPING = frozenset(
    {
        "data_dir",
        "workers",
        "fsdp",
        "out",
        "checkpoint_every",
        "keep",
        "log_every",
        "time_limit",
        "tensorboard",
        "trackers",
        "overwrite",
    }
)
"""The fields that do not change the numbers: a run may resume with other values."""


def field_texts(kind: type) -> dict[str, str]:
    """Returns the text below each field of a dataclass, which Python drops.

    {} for a class without source, and under `python -OO`.
    """
    if kind.__doc__ is None:
        return {}
    try:
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except OSError:
        return {}
    assert isinstance(parsed, ast.ClassDef)
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(parsed.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def with_field_texts(kind: type[T]) -> type[T]:
    """Returns the dataclass with the texts of its fields in its docstring.

    Without `field_texts`, its docstring stays as it is.
    """
    texts = field_texts(kind)
    if kind.__doc__ is None or not texts:
        return kind
    wrapped = (
        textwrap.fill(
            f"{name}: {text}", 88, initial_indent="  ", subsequent_indent="    "
        )
        for name, text in texts.items()
    )
    doc = inspect.cleandoc(kind.__doc__)
    kind.__doc__ = "\n".join([doc, "", "Attributes:", *wrapped])
    return kind


@with_field_texts
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The configuration of a training run.

    The defaults are the preset `digits`. Types and ranges are checked here; names and
    options are checked when the run is built.

    Raises:
      ValueError: A value is out of range; the message names the field.
    """

    dataset: str = "digits"
    """Data set: a name that `zosam_jax.data.describe()` lists, or an image \
classification set of TFDS."""
    data_dir: str | None = None
    """TFDS directory of the prepared data sets. None: TFDS_DATA_DIR, or \
~/tensorflow_datasets."""
    model: str = "resnet20"
    """Model: a name that `zosam_jax.models.describe()` lists."""
    width: float = 1.0
    """Width multiplier. Sparse-training papers use ResNet-32 at width 2."""
    model_options: tuple[str, ...] = ()
    """Options of zosam_jax.models.create for the model, as NAME=VALUE: \
stochastic_depth=0.1 or distillation=True for deit-tiny. An unknown name lists the \
options."""
    dtype: str = "float32"
    """Data type of the network's computation: float32 or bfloat16. Parameters, batch \
statistics, losses and norms stay float32."""

    method: str = "rigl"
    """Sparse method: a name in `zosam_jax.sparsity.registry.METHODS`, or dense."""
    sparsity: float = 0.9
    """Fraction of the sparse layers' weights that are zero, in [0, 1). Biases and \
normalisation parameters stay dense and do not count. Unused by method dense."""
    budget: str = "auto"
    """Sparsity distribution over the layers: erk, erk_fused (query, key and value as \
one kernel), er, uniform, or global (one threshold for all layers; static masks, \
gmp, safe and ste). auto: the method's default."""
    dense: tuple[str, ...] = ()
    """Further parameters to keep dense: glob patterns of "/"-joined paths, as \
"stem/*". Those of the model itself are always added."""
    update_interval: int | None = None
    """Optimizer steps between two mask updates. None: the method's default, 100 for \
rigl and set."""
    drop_fraction: float | None = None
    """Initial fraction of a layer's live weights that a mask update replaces. None: \
the method's default, 0.3 with cosine decay for rigl and set."""
    stop_fraction: float | None = None
    """Fraction of the training after which the masks stay fixed. None: the method's \
default, 0.75 for rigl and set."""
    method_options: tuple[str, ...] = ()
    """Other options of the method's zosam_jax.sparsity constructor, as NAME=VALUE: \
soft=True for mest, decay=2e-4 for ste, strength=1e-3 for safe, drop=magnitude \
grow=gradient for dynamic, n=2 m=4 for nm (layers whose inputs m does not divide stay \
dense). An unknown name lists the options."""

    block: int = 1
    """Prune and grow blocks of this many inputs by as many outputs, by the sum of |w| \
(for set, rigl and other methods of single weights, gmp, random and magnitude). Layers \
that are not whole blocks stay dense. 1: single weights."""
    compact_every: int | None = None
    """Epochs after which units that nothing reads, and that the method cannot bring \
back, are cut out of the training, if that saves a tenth of its multiplications: it \
goes on with a smaller network, to the same numbers (but for what a gradient draws in \
the shape of the weights). None: the network stays as it is."""
    score_images: int = 0
    """Training images of each class, not augmented, by which snip and grasp choose \
their masks. 0: the first batch, augmented."""

    gradient: str = "zosam"
    """Gradient estimator: a name in `zosam_jax.gradients.registry.METHODS`."""
    rho: float | None = None
    """Perturbation radius. None: the gradient's default, 0.05 for zosam and sam. \
Unused by backprop and zeroth_order."""
    gradient_options: tuple[str, ...] = ()
    """Other options of the gradient's zosam_jax constructor, as NAME=VALUE: \
directions=guided num_directions=2 for zosam. An unknown name lists the options. gsam \
also takes rho_min: its radius then follows the learning rate, from rho to rho_min."""
    aux_from: str | None = None
    """Pass that supplies batch statistics and training accuracy: ascent (the first) \
or descent (the last). None: the gradient's default, ascent if the first pass is at \
the unperturbed weights."""
    perturb_from: float = 0.0
    """Share of the training, from 0 to 1, after which steps are perturbed. The others \
take the plain gradient, at the price of one pass."""
    perturb_every: int = 1
    """Steps from one perturbed step to the next."""
    perturb_probability: float = 1.0
    """Probability with which a step is perturbed; with sam this is RST \
(arXiv:2203.09962)."""
    probe_fraction: float = 1.0
    """Fraction of the batch, from its front, that the ascent step uses. Below 1, the \
recorded training loss is the one at the perturbed weights."""
    probe_norm: str = "batch"
    """Statistics of BatchNorm in an ascent step on part of the batch: batch (of the \
part) or running (evaluation mode, without dropout). For a probe fraction below 1."""
    probe_dtype: str = "same"
    """Data type of the network's computation in the ascent step: float32, bfloat16 or \
same (as dtype). Losses and their differences stay float32. With another type, the \
recorded training loss is the one at the perturbed weights."""

    optimizer: str = "sgd"
    """Optimizer: a name in `zosam_jax.train.optimizers.OPTIMIZERS`."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop; the others keep Optax's defaults."""
    weight_decay: float = 5e-4
    """Weight decay: added to the gradient for sgd and rmsprop, decoupled for adamw, \
lion and adafactor."""
    nesterov: bool = False
    """Use Nesterov momentum, for sgd and rmsprop."""
    decay: str = "all"
    """Parameters with weight decay: all, or kernels (no biases, scales, tokens and \
embeddings)."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine (to final_learning_rate), step \
(x 0.1 at every milestone) or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Milestones of the step schedule, as rising fractions of all steps."""
    final_learning_rate: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from a learning rate of 0."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient. 0: no clipping."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, as 0.9999; smaller in \
the first steps. The average, on the current mask, is the network that is evaluated. \
0: no average."""
    successive_cosine: bool = False
    """Record the cosine between the gradients of successive optimizer steps, the mean \
of each epoch. It takes the memory of one more copy of the parameters."""
    batch_size: int = 64
    """Batch size, over all local devices together."""
    accumulate_steps: int = 1
    """Batches whose gradients are averaged for one optimizer step. All schedules \
count optimizer steps."""
    epochs: int = 40
    """Passes over the training set. The last, incomplete batch of each is dropped."""
    augment: tuple[str, ...] | None = None
    """Augmentation of the training images, as NAME or NAME=STRENGTH: crop=4 flip \
cutout=16 resized_crop randaugment=9 erasing=0.25 mixup=0.8 cutmix=1. None: the data \
set's own crop and flip. An empty list: none. Images that are read from disk are cut \
to a random window of 8 to 100 percent of the area by default or with resized_crop, of \
at least 25 percent with resized_crop=0.25, and to their center without resized_crop. \
Order and details: zosam_jax.data.augment."""
    label_noise: float = 0.0
    """Fraction of the training labels to replace by other classes, drawn from the \
seed. Held-out and test labels stay as they are. The summary then names the training \
accuracy on the given and on the clean labels. For images in memory."""
    label_smoothing: float = 0.0
    """Label-smoothing factor, in [0, 1)."""
    validation: float = 0.0
    """Fraction of the training images, stratified by class, or of a text, to hold out \
for validation. The summary then names the epoch of the best validation accuracy."""
    from_: str | None = None
    """Trained weights to start from: folder of a run, or a safetensors file, also one \
of ResNet-18, 34, 50, DeiT or ViT as timm and torchvision name their arrays. Other \
classes get new outputs, and position embeddings are resized to the image size. All \
else, as the learning rate, is that of a new training."""
    from_masks: str = "auto"
    """First masks of a training that starts from sparse weights: keep (those of the \
weights; rigl, set and others go on from them, and magnitude keeps them to the end), \
drawn (the method's own) or auto (keep where that can be)."""
    freeze: tuple[str, ...] = ()
    """Parameters that do not move: glob patterns of "/"-joined paths, as "stem*" \
"block[0-5]/*". They are not pruned, not perturbed and not decayed. Statistics of \
BatchNorm still follow the data."""
    layer_decay: float = 1.0
    """Layer-wise decay of the learning rate, as 0.75: block l of L learns at the rate \
times decay^(L + 1 - l), embeddings and stem as block 0, the head and the last norm at \
the whole rate (BEiT, arXiv:2106.08254). For models of blocks. 1: none."""
    teacher: str | None = None
    """Run folder of a teacher for hard-label distillation: half of the loss is the \
cross-entropy to its predicted classes (arXiv:2012.12877)."""
    normalization: str = "dataset"
    """Channel mean and deviation that images are normalized with: dataset (its own), \
imagenet, or half (0.5 and 0.5). Trained weights want those that they were trained \
with: torchvision and most of timm imagenet, the ViTs of timm half."""
    image_size: int | None = None
    """Image size in pixels, for data sets that are streamed from disk. None: 224."""
    workers: int = 0
    """Processes that decode streamed images. 0: decode in this process."""
    fsdp: int = 1
    """Devices that share one copy of parameters, masks, moments and averages: each \
holds a part, and a pass gathers the parameters (fully sharded data parallelism, \
ZeRO-3). 1: every device holds all. -1: all devices share one copy."""
    seed: int = 0
    """Random seed of parameters, masks, data order, augmentation and perturbations."""

    out: str | None = None
    """Run folder. None: runs/DATASET-MODEL-METHOD-SPARSITY-GRADIENT-sSEED. The same \
command with the same folder resumes the run."""
    checkpoint_every: int = 10
    """Epochs between two checkpoints. The last epoch is always saved."""
    keep: int = 2
    """Number of checkpoints to keep."""
    log_every: float = 10.0
    """Seconds between two progress lines within an epoch, without a terminal."""
    time_limit: float | None = None
    """Minutes after which a call, with its compilation, writes a checkpoint and ends \
with status 75. The same command goes on from there; so does --resume, with the same \
limit unless it is given another. A call makes at least one step, and the checkpoint \
takes some time beyond the limit. None: no limit."""
    tensorboard: bool = False
    """Also write TensorBoard scalars (needs tensorboardX)."""
    trackers: tuple[str, ...] = ()
    """Where the metrics go too: tensorboard, wandb, mlflow, trackio, or several. \
Variables of the environment say where these are, and the name of the project."""
    loop: str = "auto"
    """Training loop: scan (many steps in one compiled loop), steps (one call per \
step) or auto (steps on CPUs, where convolutions in a compiled loop are slow, else \
scan)."""
    overwrite: bool = False
    """Delete a run that is already in the folder and start over."""

    def __post_init__(self):
        self._make_plain()
        check_types(self.record())
        self._make_absolute()
        self._check_choices()
        self._check_counts()
        self._check_numbers()
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} must be less than epochs="
                f"{self.epochs}. (A preset may have set either.)"
            )
        for name in ("teacher", "from_"):
            path = getattr(self, name)
            if path and Path(path) == self.folder:
                raise ValueError(
                    f"{name}={path!r} is the folder of this very run. Choose another "
                    "--out."
                )
        self._check_milestones()

    def _make_plain(self) -> None:
        """Makes NumPy's numbers Python's, which JSON knows."""
        for name, value in self.record().items():
            if isinstance(value, numbers.Number) and not isinstance(value, int | float):
                item = getattr(value, "item", lambda value=value: value)
                object.__setattr__(self, name, item())

    def _make_absolute(self) -> None:
        """Makes paths mean the same from every working directory."""
        object.__setattr__(self, "dataset", paths.dataset(self.dataset))
        for name in ("data_dir", "teacher", "from_", "out"):
            if getattr(self, name) is not None:
                path = paths.absolute(getattr(self, name), name)
                object.__setattr__(self, name, str(path))

    def _check_choices(self) -> None:
        for name, choices in (
            ("dtype", DTYPES),
            ("probe_norm", PROBE_NORMS),
            ("probe_dtype", ("same", *DTYPES)),
            ("schedule", SCHEDULES),
            ("decay", DECAYS),
            ("loop", LOOPS),
            ("from_masks", FROM_MASKS),
            ("normalization", NORMALIZATIONS),
        ):
            _check.one_of(name, getattr(self, name), choices)
        for name in self.trackers:
            _check.one_of("trackers", name, TRACKERS)
        if self.aux_from is not None:
            _check.one_of("aux_from", self.aux_from, ("ascent", "descent"))

    def _check_counts(self) -> None:
        counts = ("batch_size", "epochs", "accumulate_steps", "checkpoint_every")
        for name in (*counts, "keep"):
            _check.whole(name, getattr(self, name))
        if self.update_interval is not None:
            _check.whole("update_interval", self.update_interval)
        # A key takes 32 bits of a seed: a larger one would repeat that of a smaller.
        _check.whole("seed", self.seed, least=0)
        _check.whole("block", self.block, most=1024)
        if self.compact_every is not None:
            _check.whole("compact_every", self.compact_every)
        _check.whole("workers", self.workers, least=0, most=1024)
        if self.fsdp != -1:
            _check.whole("fsdp", self.fsdp)
        _check.whole("score_images", self.score_images, least=0)
        if self.image_size is not None:
            _check.whole("image_size", self.image_size, most=8192)

    def _check_numbers(self) -> None:
        if self.rho is not None:
            _check.number("rho", self.rho, least=0, most=_LARGE)
        for name in ("weight_decay", "clip_norm"):
            _check.number(name, getattr(self, name), least=0, most=_LARGE)
        _check.number("log_every", self.log_every, least=0)
        _check.number("probe_fraction", self.probe_fraction, above=0, most=1)
        _check.number("perturb_from", self.perturb_from, least=0, below=1)
        _check.whole("perturb_every", self.perturb_every, most=2**31 - 1)
        name = "perturb_probability"
        _check.number(name, self.perturb_probability, above=0, most=1)
        _check.number("learning_rate", self.learning_rate, above=0, most=_LARGE)
        self._check_final_learning_rate()
        _check.number("layer_decay", self.layer_decay, above=0, most=1)
        _check.number("width", self.width, above=0, most=64)
        for name in ("sparsity", "momentum", "ema", "label_smoothing", "validation"):
            _check.number(name, getattr(self, name), least=0, below=1)
        _check.number("label_noise", self.label_noise, least=0, most=1)
        for name in ("drop_fraction", "stop_fraction"):
            if getattr(self, name) is not None:
                _check.number(name, getattr(self, name), least=0, most=1)
        _check.number("warmup_epochs", self.warmup_epochs, least=0)
        if self.time_limit is not None:
            _check.number("time_limit", self.time_limit, above=0)

    def _check_final_learning_rate(self) -> None:
        name = "final_learning_rate"
        _check.number(name, self.final_learning_rate, least=0)
        if not self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"{name}={self.final_learning_rate:g} must be at most learning_rate="
                f"{self.learning_rate:g}, from which the cosine falls."
            )

    def _check_milestones(self) -> None:
        for share in self.milestones:
            _check.number("milestones", share, above=0, below=1)
        bounds = (self.warmup_epochs / self.epochs, *self.milestones, 1.0)
        is_rising = all(a < b for a, b in itertools.pairwise(bounds))
        if self.schedule == "step" and not is_rising:
            raise ValueError(
                f"milestones={self.milestones!r} must rise, between the end of the "
                "warm-up and 1: shares of the steps, as 0.5 0.75."
            )

    @property
    def all_trackers(self) -> tuple[str, ...]:
        """The trackers, TensorBoard among them if it has its own field."""
        board = ("tensorboard",) if self.tensorboard else ()
        return tuple(dict.fromkeys((*board, *self.trackers)))

    @property
    def probes(self) -> bool:
        """Whether the ascent step uses part of the batch or another data type."""
        return self.probe_fraction < 1 or self.probe_dtype not in ("same", self.dtype)

    @property
    def folder(self) -> Path:
        """The absolute folder of the run."""
        sparse = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return self.folder_of(f"{self.method}{sparse}")

    def record(self) -> JSON:
        """Returns all fields as a dictionary, as `config.json` has them."""
        return dataclasses.asdict(self)

    def folder_of(self, method: str) -> Path:
        """Returns `out`, or the default folder, as an absolute path.

        Args:
          method: What the name of the default folder says of the sparse training.
        """
        kind, _, path = self.dataset.partition(":")
        dataset = f"{kind}-{Path(path).name}" if path else kind.replace("/", "-")
        name = f"{dataset}-{self.model}-{method}-{self.gradient}-s{self.seed}"
        # Code of the user's own is named by its module.
        name = name.replace(":", "-")
        return paths.absolute(self.out or Path("runs", name), "out")


def check_types(record: Mapping[str, Any]) -> None:
    """Raises `ValueError` if the value of a field is of another type.

    Args:
      record: Fields of `TrainConfig`, some or all, as Python or JSON gives them. Others
        are not looked at.

    >>> check_types({"epochs": 3, "dense": ["stem/*"]})
    """
    for name, hint in _field_types().items():
        if name in record and not _fits(record[name], hint):
            raise ValueError(f"{name}={record[name]!r} must be {_NAMES[hint]}.")


_NAMES: dict[Any, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str | None: "text or None",
    int | None: "an integer or None",
    float | None: "a number or None",
    tuple[str, ...]: "a list of texts",
    tuple[str, ...] | None: "a list of texts or None",
    tuple[float, ...]: "a list of numbers",
}


@functools.cache
def _field_types() -> dict[str, Any]:
    return typing.get_type_hints(TrainConfig)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of a field; a list of JSON is a tuple."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in options)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(
            _fits(item, options[0]) for item in value
        )
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else hint)


def from_record(record: Mapping[str, Any], **changes: Any) -> "TrainConfig":
    """Returns the configuration that a record describes, as JSON has it.

    Args:
      record: What `TrainConfig.record` returned, or a part of it: fields that are
        missing get their defaults.
      **changes: Fields to set otherwise.

    >>> from_record({"milestones": [0.5, 0.75], "epochs": 3}, seed=1).milestones
    (0.5, 0.75)

    Raises:
      ValueError: A field is unknown, or a value is of another type or out of range.
    """
    unknown = sorted(set(record) - set(_field_types()))
    if unknown:
        raise ValueError(
            f"has fields that this version does not know: {', '.join(unknown)}. Use "
            "the version that wrote it."
        )
    check_types(record)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return TrainConfig(**{**fields, **changes})


def default(field: str) -> Any:
    """Returns the default value of a field of `TrainConfig`.

    >>> default("budget")
    'auto'
    """
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    return fields[field]


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Returns the fields with different values, as `{field: (old, new)}`.

    Fields of `HOUSEKEEPING` are left out.

    Args:
      old: A configuration as `dataclasses.asdict` or JSON gives it.
      new: The configuration to compare with it.

    >>> differences({"rho": 0.05, "out": "a"}, {"rho": 0.1, "out": "b"})
    {'rho': (0.05, 0.1)}
    """

    # JSON has no tuples: what was written as one is read as a list.
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    names = [name for name in {**old, **new} if name not in HOUSEKEEPING]
    pairs = {name: (plain(old.get(name)), plain(new.get(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
