"""Weights of timm and torchvision in the models here.

The names and shapes in `torch_names.json` are those of the libraries' own modules. A
NumPy replica computes with arrays in PyTorch's layout; where the libraries are
installed (the extra `torch`), so do their own modules.
"""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from zosam_jax import models
from zosam_jax.models import resnet, torch_names, vit

RECORDED = json.loads(Path(__file__).with_name("torch_names.json").read_text())
OURS = {
    "resnet18 of torchvision and timm": ("resnet18", {}),
    "resnet50 of torchvision and timm": ("resnet50", {}),
    "deit_tiny_distilled_patch16_224 of timm": ("deit-tiny", {"distillation": True}),
    "vit_b_16 of torchvision": ("deit-base", {}),
}


def by_path(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def variables(tensors):
    """The variables of a model here with the arrays of a `state_dict`."""
    params, state = torch_names.renamed(tensors)
    flat = {f"params/{path}": x for path, x in params.items()} | state
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("name", OURS)
def test_each_array_of_the_libraries_has_its_place(name):
    zero = np.zeros(())
    tensors = {
        key: np.broadcast_to(zero, shape)
        for key, shape in RECORDED["shapes"][name].items()
    }
    found = by_path(variables(tensors))
    ours, options = OURS[name]
    model = models.create(ours, num_classes=1000, image_size=224, **options)
    wanted = jax.eval_shape(
        lambda: models.initialize(model, jax.random.key(0), (224, 224, 3))
    )
    shapes = by_path({"params": wanted[0], **wanted[1]})
    assert {k: x.shape for k, x in found.items()} == {
        k: x.shape for k, x in shapes.items()
    }


@pytest.mark.parametrize("name", ["encoder.weight", "layer1.0.conv1.alpha", "fc"])
def test_an_unknown_array_is_named(name):
    with pytest.raises(ValueError, match=f"the array '{name}'"):
        torch_names.renamed({name: np.ones((2, 2))})


def drawn(shapes):
    """Random arrays of a state: scales and variances are positive."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in shapes.items():
        x = rng.normal(size=shape) / math.sqrt(max(math.prod(shape[1:]), 1))
        positive = name.endswith("running_var") or (
            name.endswith("weight") and len(shape) == 1
        )
        found[name] = (1 + 0.1 * abs(x) if positive else x).astype(np.float32)
    return found


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x, state, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def timm_vit(state, images, heads):
    """A vision transformer of one block; images `[N, 3, H, W]`."""
    conv = state["patch_embed.proj.weight"]
    (n, c, h, w), (d, _, p, _) = images.shape, conv.shape
    cut = images.reshape(n, c, h // p, p, w // p, p).transpose(0, 2, 4, 1, 3, 5)
    x = cut.reshape(n, -1, c * p * p) @ conv.reshape(d, -1).T
    x = x + state["patch_embed.proj.bias"]
    token = np.broadcast_to(state["cls_token"], (n, 1, d))
    x = np.concatenate([token, x], 1) + state["pos_embed"]
    y = linear(layer_norm(x, state, "blocks.0.norm1"), state, "blocks.0.attn.qkv")
    q, k, v = y.reshape(n, -1, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
    mixed = softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(d // heads)) @ v
    mixed = mixed.transpose(0, 2, 1, 3).reshape(n, -1, d)
    x = x + linear(mixed, state, "blocks.0.attn.proj")
    y = linear(layer_norm(x, state, "blocks.0.norm2"), state, "blocks.0.mlp.fc1")
    x = x + linear(gelu(y), state, "blocks.0.mlp.fc2")
    return linear(layer_norm(x, state, "norm")[:, 0], state, "head")


def vit_shapes(d, patch, tokens, classes):
    norms = ("blocks.0.norm1", "blocks.0.norm2", "norm")
    sizes = {
        "blocks.0.attn.qkv": (3 * d, d),
        "blocks.0.attn.proj": (d, d),
        "blocks.0.mlp.fc1": (4 * d, d),
        "blocks.0.mlp.fc2": (d, 4 * d),
        "head": (classes, d),
        **dict.fromkeys(norms, (d,)),
        "patch_embed.proj": (d, 3, patch, patch),
    }
    layers = {f"{k}.weight": s for k, s in sizes.items()}
    layers |= {f"{k}.bias": s[:1] for k, s in sizes.items()}
    return {**layers, "cls_token": (1, 1, d), "pos_embed": (1, tokens, d)}


def close(found, wanted):
    """To 1e-4 of the largest logit."""
    np.testing.assert_allclose(found, wanted, atol=1e-4 * abs(wanted).max(), rtol=0)


def logits(model, state, images):
    """Of images in PyTorch's layout, in evaluation mode."""
    return model.apply(variables(state), images.transpose(0, 2, 3, 1), train=False)


def test_a_transformer_computes_what_the_replica_does():
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    state = drawn(vit_shapes(12, 4, 5, 3))
    model = vit.DeiT(3, patch=4, heads=3, features=12, depth=1)
    close(logits(model, state, images), timm_vit(state, images, heads=3))


def convolved(x, kernel, stride):
    """`[N, C, H, W]`, padded as PyTorch pads these networks."""
    size = kernel.shape[-1]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], kernel)


def batch_norm(x, state, name):
    mean, var, scale, bias = (
        state[f"{name}.{key}"][:, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def torch_resnet(state, images):
    """A bottleneck ResNet of two stages of one block each."""
    x = convolved(images, state["conv1.weight"], 2)
    x = np.maximum(batch_norm(x, state, "bn1"), 0)
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    x = windows[:, :, ::2, ::2].max((-1, -2))
    for block, stride in (("layer1.0", 1), ("layer2.0", 2)):
        y = x
        for i, step in ((1, 1), (2, stride), (3, 1)):
            y = convolved(y, state[f"{block}.conv{i}.weight"], step)
            y = batch_norm(y, state, f"{block}.bn{i}")
            y = np.maximum(y, 0) if i < 3 else y
        x = convolved(x, state[f"{block}.downsample.0.weight"], stride)
        x = np.maximum(batch_norm(x, state, f"{block}.downsample.1") + y, 0)
    return linear(x.mean((2, 3)), state, "fc")


def resnet_shapes(c, classes):
    sizes = {"conv1": (c, 3, 7, 7), "bn1": (c,)}
    inputs = c
    for stage, width in ((1, c), (2, 2 * c)):
        kernels = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
        for i, (o, k, size) in enumerate(kernels, 1):
            sizes[f"layer{stage}.0.conv{i}"] = (o, k, size, size)
            sizes[f"layer{stage}.0.bn{i}"] = (o,)
        sizes[f"layer{stage}.0.downsample.0"] = (4 * width, inputs, 1, 1)
        sizes[f"layer{stage}.0.downsample.1"] = (4 * width,)
        inputs = 4 * width
    shapes = {f"{name}.weight": size for name, size in sizes.items()}
    for name, size in sizes.items():
        if len(size) == 1:
            for key in ("bias", "running_mean", "running_var"):
                shapes[f"{name}.{key}"] = size
            shapes[f"{name}.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def small_resnet(channels, blocks):
    return resnet.ResNet(blocks, 3, channels=channels, bottleneck=True, stem="imagenet")


def test_a_resnet_computes_what_the_replica_does():
    images = np.random.default_rng(1).normal(size=(2, 3, 16, 16)).astype(np.float32)
    state = drawn(resnet_shapes(4, 3))
    model = small_resnet((4, 8), (1, 1))
    close(logits(model, state, images), torch_resnet(state, images))


CASES = {
    "timm deit_tiny_patch16_224": ("deit-tiny", {"img_size": 32, "depth": 2}),
    "timm deit_tiny_distilled_patch16_224": (
        "deit-tiny",
        {"img_size": 32, "depth": 2},
    ),
    "torchvision vit_b_16": ("deit-base", {"image_size": 32}),
    "torchvision resnet18": ("resnet18", {}),
    "torchvision resnet50": ("resnet50", {}),
    "timm resnet34": ("resnet34", {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_logits_are_those_of_the_libraries(name):
    """With random weights and statistics, in evaluation mode."""
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    library, kind = name.split()
    made = pytest.importorskip(library)
    ours, options = CASES[name]
    if library == "timm":
        theirs = made.create_model(kind, num_classes=3, **options)
    else:
        theirs = getattr(made.models, kind)(num_classes=3, **options)
    shapes = {k: tuple(x.shape) for k, x in theirs.state_dict().items()}
    state = drawn(shapes)
    theirs.load_state_dict({k: torch.tensor(x) for k, x in state.items()})
    size = 64 if "resnet" in ours else 32
    images = np.random.default_rng(1).normal(size=(2, 3, size, size))
    images = images.astype(np.float32)
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(images)).numpy()
    own = {"depth": options["depth"]} if "depth" in options else {}
    own |= {"distillation": True} if "distilled" in kind else {}
    model = models.create(ours, num_classes=3, image_size=size, **own)
    close(logits(model, state, images), wanted)
