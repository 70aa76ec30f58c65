"""The table of models: a row for each name, and the functions that read the rows.

To add a model, write its module and add a row to `MODELS`. A new kind of option also
needs an entry in `OPTIONS`. `tests/models/test_model_table.py` says what is
still missing.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax import _check
from zosam_jax._types import Units
from zosam_jax.models import mlp, resnet, tinylm, vgg, vit, wide_resnet

OptionValue = bool | int | float | str | tuple[int, ...] | Mapping[str, int]


class Option(NamedTuple):
    """An option of `create` that some models take.

    Attributes:
      check: `(name, value)`; raises `ValueError` if the value is not allowed.
      help: One line that says what the option is, with its unit or choices.
    """

    check: Callable[[str, Any], None]
    help: str


class Count(NamedTuple):
    """A published number of parameters.

    Attributes:
      parameters: The number.
      classes: Number of classes for which it holds.
      shape: Shape of one example: (H, W, C) of an image, (T,) of token ids.
      options: Width and options of `create` for which it holds.
    """

    parameters: int
    classes: int
    shape: tuple[int, ...]
    options: Mapping[str, OptionValue] = {}


class NamedModel(NamedTuple):
    """A row of the table.

    Attributes:
      make: Constructor. It takes `fixed`, the options, and as many of `num_classes`,
        `width`, `image_size` and `dtype` as it names.
      units: Constructor of `{name: Units}`. It takes the arguments of `make` that it
        names.
      label: The name in words.
      paper: Source of the architecture.
      counts: Published numbers of parameters; the first one is the usual size.
      options: Names in `OPTIONS` of the options that `make` takes.
      fixed: Arguments that tell the model from others of its family.
      dense: Patterns of the parameters that are dense by default; see `dense_paths`.
      kind: Type of the examples.
    """

    make: Callable[..., nn.Module]
    units: Callable[..., dict[str, Units]]
    label: str
    paper: str
    counts: tuple[Count, ...]
    options: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = {}
    dense: tuple[str, ...] = ()
    kind: Literal["image", "text"] = "image"


def _rate(name: str, value: Any) -> None:
    _check.number(name, value, least=0, below=1)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False.")


def _among(*choices: str) -> Callable[[str, Any], None]:
    return lambda name, value: _check.one_of(name, value, choices)


def _sizes(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not value:
        raise ValueError(f"{name}={value!r} must be a tuple of sizes, as (300, 100).")
    for size in value:
        _check.whole(name, size, most=2**16)


def _widths(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name}={value!r} must be numbers of units by name, as {{'hidden1': 40}}."
        )
    for layer, size in value.items():
        _check.whole(f"{name}: {layer}", size, most=2**16)


OPTIONS: dict[str, Option] = {
    "dropout": Option(_rate, "dropout rate in [0, 1)"),
    "stochastic_depth": Option(
        _rate, "rate of dropped residual branches at the last block, in [0, 1)"
    ),
    "zero_init_residual": Option(
        _flag, "True: residual blocks are initialized to the identity"
    ),
    "stem": Option(
        _among("cifar", "imagenet"),
        "'imagenet' (7x7, stride 2, and max pooling) or 'cifar' (3x3)",
    ),
    "depth": Option(functools.partial(_check.whole, most=1000), "number of blocks"),
    "patch": Option(_check.whole, "side of a patch in pixels"),
    "distillation": Option(_flag, "True: a distillation token and its head"),
    "positions": Option(_among("learned", "rotary"), "'learned' or 'rotary'"),
    "tied": Option(_flag, "True: the token embedding is also the head"),
    "segmentation": Option(_flag, "True: a class for every pixel of an image"),
    "hidden": Option(_sizes, "hidden sizes, as (300, 100)"),
    "widths": Option(
        _widths, "units of single layers, as {'hidden1': 40}; `compact` makes them"
    ),
}

_RATES = ("dropout", "stochastic_depth")
_CIFAR, _IMAGENET = (32, 32, 3), (224, 224, 3)


def _cifar_resnet(depth: int, *counts: Count) -> NamedModel:
    return NamedModel(
        resnet.ResNet,
        resnet.units,
        f"ResNet-{depth} for CIFAR",
        "He et al. 2016, arXiv:1512.03385",
        counts,
        (*_RATES, "zero_init_residual", "segmentation", "widths"),
        {"blocks": (depth - 2) // 6},
    )


def _imagenet_resnet(
    depth: int, blocks: tuple[int, ...], *counts: Count, bottleneck: bool = False
) -> NamedModel:
    return NamedModel(
        resnet.ResNet,
        resnet.units,
        f"ResNet-{depth} for ImageNet",
        "He et al. 2016, arXiv:1512.03385",
        counts,
        (*_RATES, "stem", "zero_init_residual", "segmentation", "widths"),
        {
            "blocks": blocks,
            "channels": (64, 128, 256, 512),
            "bottleneck": bottleneck,
            "stem": "imagenet",
        },
    )


def _wide_resnet(depth: int, factor: int, *counts: Count) -> NamedModel:
    return NamedModel(
        wide_resnet.WideResNet,
        wide_resnet.units,
        f"WRN-{depth}-{factor}",
        "Zagoruyko and Komodakis 2016, arXiv:1605.07146",
        counts,
        (*_RATES, "widths"),
        {"blocks": (depth - 4) // 6, "factor": factor},
    )


def _deit(label: str, size: int, parameters: int, distilled: int) -> NamedModel:
    return NamedModel(
        vit.create_deit,
        vit.units,
        label,
        "Touvron et al. 2021, arXiv:2012.12877",
        (
            Count(parameters, 1000, _IMAGENET),
            Count(distilled, 1000, _IMAGENET, {"distillation": True}),
        ),
        (*_RATES, "depth", "distillation", "patch", "segmentation", "widths"),
        {"size": size},
        vit.DENSE,
    )


# The counts of ImageNet ResNets are torchvision's; the counts of DeiT are timm's.
MODELS: dict[str, NamedModel] = {
    "resnet20": _cifar_resnet(20, Count(272_474, 10, _CIFAR)),
    "resnet32": _cifar_resnet(
        32,
        Count(466_906, 10, _CIFAR),
        # The literature on sparse training uses width 2.
        Count(1_860_522, 10, _CIFAR, {"width": 2}),
        Count(1_872_132, 100, _CIFAR, {"width": 2}),
    ),
    "resnet44": _cifar_resnet(44, Count(661_338, 10, _CIFAR)),
    "resnet56": _cifar_resnet(56, Count(855_770, 10, _CIFAR)),
    "vgg19": NamedModel(
        vgg.create_vgg19,
        vgg.units,
        "VGG-19 with batch normalization, for CIFAR",
        "Simonyan and Zisserman 2015, arXiv:1409.1556",
        # Published with the 5,504 biases that batch normalization cancels.
        (Count(20_040_522 - 5_504, 10, _CIFAR),),
        ("dropout", "widths"),
    ),
    "wrn22-2": _wide_resnet(22, 2, Count(1_079_642, 10, _CIFAR)),
    # 36.5 million in the paper.
    "wrn28-10": _wide_resnet(
        28, 10, Count(36_479_194, 10, _CIFAR), Count(36_536_884, 100, _CIFAR)
    ),
    "resnet18": _imagenet_resnet(
        18,
        (2, 2, 2, 2),
        Count(11_689_512, 1000, _IMAGENET),
        Count(11_173_962, 10, _CIFAR, {"stem": "cifar"}),
    ),
    "resnet34": _imagenet_resnet(34, (3, 4, 6, 3), Count(21_797_672, 1000, _IMAGENET)),
    "resnet50": _imagenet_resnet(
        50, (3, 4, 6, 3), Count(25_557_032, 1000, _IMAGENET), bottleneck=True
    ),
    "vit": NamedModel(
        vit.create_vit,
        vit.units,
        "ViT of depth 6 for small images",
        "Dosovitskiy et al. 2021, arXiv:2010.11929",
        (Count(2_693_194, 10, _CIFAR),),
        (*_RATES, "depth", "patch", "segmentation", "widths"),
        dense=vit.DENSE,
    ),
    "deit-tiny": _deit("DeiT-Ti", 1, 5_717_416, 5_910_800),
    "deit-small": _deit("DeiT-S", 2, 22_050_664, 22_436_432),
    "deit-base": _deit("DeiT-B", 4, 86_567_656, 87_338_192),
    "mlp": NamedModel(
        mlp.MLP,
        mlp.units,
        "LeNet-300-100",
        "LeCun et al. 1998; Frankle and Carbin 2019, arXiv:1803.03635",
        # On MNIST: 266,200 weights and 410 biases.
        (Count(266_200 + 410, 10, (28, 28, 1)),),
        ("dropout", "hidden", "widths"),
    ),
    "tinylm": NamedModel(
        tinylm.create_tinylm,
        tinylm.units,
        "GPT-2 of depth 4 on token ids",
        "Radford et al. 2019",
        (Count(867_072, 256, (64,)),),
        (*_RATES, "depth", "positions", "tied", "widths"),
        dense=tinylm.DENSE,
        kind="text",
    ),
}


def names() -> tuple[str, ...]:
    """Returns the names of all models.

    >>> names()[:5]
    ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'vgg19')
    """
    return tuple(MODELS)


def kind(name: str) -> Literal["image", "text"]:
    """Returns the type of a model's examples: "image" or "text".

    >>> kind("tinylm")
    'text'

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    return _row(name).kind


def options(name: str) -> tuple[str, ...]:
    """Returns the names of the options of `create` for a model.

    >>> options("vit")
    ('dropout', 'stochastic_depth', 'depth', 'patch', 'segmentation', 'widths')

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    return _row(name).options


def dense_paths(name: str) -> tuple[str, ...]:
    """Returns glob patterns of the parameters that are dense by default.

    The patterns match "/"-joined key paths and are meant for the `dense=` of a sparse
    method. Biases, tokens and the scales of normalizations have fewer than two axes and
    are dense anyway.

    * Convolutional networks and the MLP have none. The ERK distribution keeps the stem,
      the head and the small shortcuts dense or almost dense by itself. For a uniform
      distribution, add `("stem/*",)` as RigL does (arXiv:1911.11134), or also
      `"*/shortcut/*"` and `"head/*"` as MEST and DSR do (arXiv:1902.05967). For VGG,
      MEST uses `("conv1/*", "head/*")`. The heads of a ResNet for segmentation are
      `"*head/*"`.
    * ViT and DeiT: the position embedding, which has no fan-in. The patch embedding and
      the heads are pruned, as in SViTE (arXiv:2106.04533).
    * `tinylm`: both embeddings, for the same reason; a tied head is one of them.

    >>> dense_paths("vit")
    ('position_embedding',)

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    return _row(name).dense


def describe() -> str:
    """Returns a list of all models and options as text.

    >>> print(describe().splitlines()[0])
    resnet20: ResNet-20 for CIFAR, 272,474 parameters (He et al. 2016, arXiv:1512.03385)
    """
    lines = []
    for name, row in MODELS.items():
        size = f"{row.counts[0].parameters:,} parameters"
        lines.append(f"{name}: {row.label}, {size} ({row.paper})")
        lines.append(f"    options: {', '.join(row.options)}")
    lines += ["", "Options"]
    lines += [f"{name}: {option.help}" for name, option in OPTIONS.items()]
    return "\n".join(lines)


def create(
    name: str,
    *,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 32,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nn.Module:
    """Returns a model by name; `print(describe())` lists names, sizes and options.

    Args:
      name: One of `names()`.
      num_classes: Number of classes; of a language model, the size of the vocabulary.
      width: Multiplier of the layers' widths, at least 1/16. The literature on sparse
        training uses ResNet-32 at width 2.
      image_size: Side of the images in pixels. It sets the default patch of `vit`, must
        be a multiple of DeiT's patch, and at least 16 for VGG. Other models accept
        images of any size.
      dtype: Type of the computation, as `jnp.bfloat16`. Parameters, batch statistics
        and logits are float32.
      **options: The options in `options(name)`.

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.

    >>> create("resnet18", num_classes=10, stem="cifar").stem
    'cifar'
    """
    row, arguments = _checked(name, width, options)
    _check.whole("num_classes", num_classes)
    _check.whole("image_size", image_size)
    shared = {
        "num_classes": num_classes,
        "width": width,
        "image_size": image_size,
        "dtype": dtype,
    }
    model: Any = row.make(**_named_by(row.make, shared), **arguments)
    for layer in options.get("widths", ()):
        _check.one_of(f"{name}: widths", layer, model.cuts())
    return model


def unit_groups(name: str, *, width: float = 1.0, **options: Any) -> dict[str, Units]:
    """Returns the units that `zosam_jax.sparsity.units` can prune, by name.

    * ViT, DeiT and `tinylm`: "heads", dropped by their effect on the loss, and "mlp",
      the hidden units of the blocks' MLPs, dropped by the norms of their weights. Both
      are as in S2ViTE (arXiv:2106.04533).
    * ResNets: "channels", those between the two convolutions of a block. ResNet-50:
      "channels1" and "channels2", the inputs of the second and third convolution of a
      block. Several layers read the other channels.
    * VGG: "channels1" to "channels16", the outputs of each convolution.
    * MLP: "hidden1", ..., the units of each hidden layer.

    Args:
      name: One of `names()`.
      width: As in `create`; it sets the number of heads.
      **options: As in `create`.

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.

    >>> sorted(unit_groups("vit"))
    ['heads', 'mlp']
    """
    row, arguments = _checked(name, width, options)
    return row.units(**_named_by(row.units, {"width": width, **arguments}))


def _row(name: str) -> NamedModel:
    _check.one_of("model", name, MODELS)
    return MODELS[name]


def check_options(
    name: str, options: Mapping[str, Any], owner: str | None = None
) -> None:
    """Raises `ValueError` for options that a model does not take, or wrong values.

    Args:
      name: One of `names()`.
      options: As in `create`.
      owner: What errors call the model. Default: its name.
    """
    label, known = owner or name, _row(name).options
    for option, value in options.items():
        _check.option(label, option, known)
        OPTIONS[option].check(f"{label}: {option}", value)


def _checked(
    name: str, width: float, options: Mapping[str, Any]
) -> tuple[NamedModel, dict[str, Any]]:
    """Returns a row and its fixed arguments, overridden by the checked options."""
    row = _row(name)
    check_options(name, options)
    _check.number("width", width, least=1 / 16, most=64)
    return row, {**row.fixed, **options}


def _named_by(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments that a function has a parameter for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
