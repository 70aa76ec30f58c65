"""Weights of timm and torchvision under the names and in the layout of the models here.

ResNet-18, 34 and 50 of both libraries, and vision transformers with a class token: DeiT
and ViT of timm, and ViT of torchvision, which are the models `deit-*` here. Their
`state_dict` is read as it is saved in a safetensors file; the arrays of PyTorch are
transposed: convolutions `[out, in, H, W] -> [H, W, in, out]`, linear layers `[out, in]
-> [in, out]`.
"""

import re
from collections.abc import Mapping

import numpy as np

# Modules by the pattern of their name. "{a,b,c}" stands for three layers that PyTorch
# keeps in one.
MODULES = (
    # ResNets of torchvision and timm.
    (r"conv1", r"stem"),
    (r"bn1", r"stem_norm"),
    (r"layer(\d+)\.(\d+)\.conv(\d)", r"stage\1_block\2/conv\3"),
    (r"layer(\d+)\.(\d+)\.bn(\d)", r"stage\1_block\2/norm\3"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", r"stage\1_block\2/shortcut"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", r"stage\1_block\2/shortcut_norm"),
    (r"fc", r"head"),
    # DeiT and ViT of timm.
    (r"patch_embed\.proj", r"embed"),
    (r"blocks\.(\d+)\.norm(\d)", r"block\1/norm\2"),
    (r"blocks\.(\d+)\.attn\.qkv", r"block\1/attention/{query,key,value}"),
    (r"blocks\.(\d+)\.attn\.proj", r"block\1/attention/out"),
    (r"blocks\.(\d+)\.mlp\.fc(\d)", r"block\1/mlp\2"),
    (r"norm", r"norm"),
    (r"head", r"head"),
    (r"head_dist", r"distillation_head"),
    # ViT of torchvision.
    (r"conv_proj", r"embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_(\d)", r"block\1/norm\2"),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj",
        r"block\1/attention/{query,key,value}",
    ),
    (
        r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj",
        r"block\1/attention/out",
    ),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.0", r"block\1/mlp1"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.3", r"block\1/mlp2"),
    (r"encoder\.ln", r"norm"),
    (r"heads\.head", r"head"),
)
"""`(pattern of a module's name, path of the module here)`."""

# Arrays that are no layer's, without their leading axes of length 1.
ARRAYS = {
    "cls_token": "class_token",
    "dist_token": "distillation_token",
    "pos_embed": "position_embedding",
    "class_token": "class_token",
    "encoder.pos_embedding": "position_embedding",
}
"""Paths of the arrays that belong to no module."""

_STATISTICS = {"running_mean": "mean", "running_var": "var"}
_UNUSED = "num_batches_tracked"


def renamed(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns parameters and other collections by the paths of the models here.

    Args:
      tensors: The arrays of a `state_dict` by name.

    Returns:
      `(params, model_state)`, as `{"stem/kernel": ...}` and
      `{"batch_stats/stem_norm/mean": ...}`.

    Raises:
      ValueError: An array has a name of no model here.

    >>> params, state = renamed({"fc.weight": np.zeros((10, 64))})
    >>> {path: x.shape for path, x in params.items()}
    {'head/kernel': (64, 10)}
    """
    params: dict[str, np.ndarray] = {}
    state: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        if name in ARRAYS:
            params[ARRAYS[name]] = x.reshape(_without_batch(name, x.shape))
            continue
        # The projections of PyTorch's own attention have an underscore there.
        module, _, kind = name.replace("in_proj_", "in_proj.").rpartition(".")
        if kind == _UNUSED:
            continue
        path = _path(name, module)
        if kind in _STATISTICS:
            state[f"batch_stats/{path}/{_STATISTICS[kind]}"] = x
            continue
        for each, part in _parts(path, x):
            leaf, array = _leaf(name, kind, part)
            params[f"{each}/{leaf}"] = array
    return params, state


def _path(name: str, module: str) -> str:
    """Returns the path of a module here."""
    for pattern, path in MODULES:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(path)
    raise ValueError(
        f"the array {name!r} belongs to no model here. ResNet-18, 34, 50 of timm and "
        "torchvision, DeiT and ViT of timm and ViT of torchvision are known."
    )


def _parts(path: str, x: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns the layers that an array is for, and the part of each."""
    match = re.search(r"\{(.*)\}", path)
    if match is None:
        return [(path, x)]
    names = match[1].split(",")
    start, end = match.span()
    parts = np.split(x, len(names))
    return [
        (f"{path[:start]}{name}{path[end:]}", part)
        for name, part in zip(names, parts, strict=True)
    ]


_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}


def _leaf(name: str, kind: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the name of a parameter here, and its array."""
    if kind == "bias":
        return "bias", x
    if kind != "weight" or x.ndim not in (1, *_AXES):
        raise ValueError(f"the array {name!r} of shape {[*x.shape]} is no layer's.")
    # The only weights of one axis are the scales of normalizations.
    return ("scale", x) if x.ndim == 1 else ("kernel", x.transpose(_AXES[x.ndim]))


def _without_batch(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without the axis of the batch; a token has one axis."""
    return shape[-2:] if "pos" in name else shape[-1:]
