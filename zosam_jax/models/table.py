"""The table of models: a row for every name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from zosam_jax import _check
from zosam_jax._types import Units
from zosam_jax.models import mlp, resnet, tinylm, transformer, vgg, vit, wide_resnet


class Row(NamedTuple):
    """A model.

    Attributes:
      make: `(num_classes, width, image_size, dtype, **settings, **options) -> module`.
      dense: Patterns of the parameters that are dense by default.
      units: `(width, **settings, **options) -> {name: Units}`.
      options: Names of the options that `make` takes; see `OPTIONS`.
      settings: What makes it this model of its family.
    """

    make: Callable[..., nn.Module]
    dense: tuple[str, ...]
    units: Callable[..., dict[str, Units]]
    options: tuple[str, ...]
    settings: Mapping[str, Any]


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
        _check.whole(name, size)


# What an option's value must be: a function that raises if it is not.
OPTIONS: dict[str, Callable[[str, Any], None]] = {
    "depth": _check.whole,
    "distillation": _flag,
    "dropout": _rate,
    "hidden": _sizes,
    "patch": _check.whole,
    "positions": _among("learned", "rotary"),
    "stem": _among("cifar", "imagenet"),
    "stochastic_depth": _rate,
    "tied": _flag,
    "zero_init_residual": _flag,
}


def _resnet(image_size: int, **fields: Any) -> nn.Module:
    del image_size
    return resnet.ResNet(**fields)


def _resnet_units(*, bottleneck: bool = False, **others: Any) -> dict[str, Units]:
    del others
    return resnet.units(bottleneck)


def _wide_resnet(image_size: int, **fields: Any) -> nn.Module:
    del image_size
    return wide_resnet.WideResNet(**fields)


def _wide_resnet_units(**others: Any) -> dict[str, Units]:
    del others
    return wide_resnet.units()


def _vgg(image_size: int, **fields: Any) -> nn.Module:
    vgg.check_image_size(image_size)
    return vgg.VGG(**fields)


def _vgg_units(**others: Any) -> dict[str, Units]:
    del others
    return vgg.units()


def _mlp(image_size: int, **fields: Any) -> nn.Module:
    del image_size
    return mlp.MLP(**fields)


def _mlp_units(
    *, hidden: tuple[int, ...] = mlp.HIDDEN, **others: Any
) -> dict[str, Units]:
    del others
    return mlp.units(hidden)


def _vit(
    image_size: int, width: float, patch: int | None = None, **fields: Any
) -> nn.Module:
    patch = patch or vit.patch_size(image_size)
    vit.check_patch(image_size, patch)
    heads, features = vit.heads_and_width(width)
    return vit.ViT(patch=patch, heads=heads, features=features, **fields)


def _deit(
    image_size: int, width: float, size: int, patch: int = 16, **fields: Any
) -> nn.Module:
    vit.check_patch(image_size, patch)
    heads, features = vit.heads_and_width(size * width)
    return vit.DeiT(patch=patch, heads=heads, features=features, **fields)


def _vit_units(*, width: float, size: int = 1, **others: Any) -> dict[str, Units]:
    del others
    return transformer.units(vit.heads_and_width(size * width)[0])


def _tinylm(image_size: int, width: float, **fields: Any) -> nn.Module:
    del image_size
    heads = tinylm.heads_of(width)
    return tinylm.TinyLM(heads=heads, features=heads * tinylm.HEAD_FEATURES, **fields)


def _tinylm_units(*, width: float, **others: Any) -> dict[str, Units]:
    del others
    return transformer.units(tinylm.heads_of(width))


_RATES = ("dropout", "stochastic_depth")


def _cifar_resnet_row(depth: int) -> Row:
    options = (*_RATES, "zero_init_residual")
    settings = {"blocks": (depth - 2) // 6}
    return Row(_resnet, resnet.DENSE, _resnet_units, options, settings)


def _imagenet_resnet_row(*blocks: int, bottleneck: bool = False) -> Row:
    options = (*_RATES, "stem", "zero_init_residual")
    settings = {
        "blocks": blocks,
        "channels": (64, 128, 256, 512),
        "bottleneck": bottleneck,
        "stem": "imagenet",
    }
    return Row(_resnet, resnet.DENSE, _resnet_units, options, settings)


def _wide_resnet_row(depth: int, factor: int) -> Row:
    settings = {"blocks": (depth - 4) // 6, "factor": factor}
    return Row(_wide_resnet, wide_resnet.DENSE, _wide_resnet_units, _RATES, settings)


def _deit_row(size: int) -> Row:
    """`size` times the heads and the features of DeiT-Tiny."""
    options = (*_RATES, "depth", "distillation", "patch")
    return Row(_deit, vit.DENSE, _vit_units, options, {"size": size})


ROWS: dict[str, Row] = {
    "resnet20": _cifar_resnet_row(20),
    "resnet32": _cifar_resnet_row(32),
    "resnet44": _cifar_resnet_row(44),
    "resnet56": _cifar_resnet_row(56),
    "vgg19": Row(_vgg, vgg.DENSE, _vgg_units, ("dropout",), {}),
    "wrn22-2": _wide_resnet_row(22, 2),
    "wrn28-10": _wide_resnet_row(28, 10),
    "resnet18": _imagenet_resnet_row(2, 2, 2, 2),
    "resnet34": _imagenet_resnet_row(3, 4, 6, 3),
    "resnet50": _imagenet_resnet_row(3, 4, 6, 3, bottleneck=True),
    "vit": Row(_vit, vit.DENSE, _vit_units, (*_RATES, "depth", "patch"), {}),
    "deit-tiny": _deit_row(1),
    "deit-small": _deit_row(2),
    "deit-base": _deit_row(4),
    "mlp": Row(_mlp, mlp.DENSE, _mlp_units, ("dropout", "hidden"), {}),
    "tinylm": Row(
        _tinylm,
        tinylm.DENSE,
        _tinylm_units,
        (*_RATES, "depth", "positions", "tied"),
        {},
    ),
}


def checked(name: str, options: Mapping[str, Any]) -> tuple[Row, dict[str, Any]]:
    """Returns a model's row, and its settings with the options over them.

    Raises:
      ValueError: The name, an option or its value is unknown; the message names it.
    """
    _check.one_of("model", name, ROWS)
    row = ROWS[name]
    for option, value in options.items():
        _check.one_of(f"{name}: option", option, row.options)
        OPTIONS[option](f"{name}: {option}", value)
    return row, {**row.settings, **options}
