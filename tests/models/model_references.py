"""The models in NumPy, in float64, written from the papers and their published forms.

Parameters are those of the Flax models; nothing else is shared with them.
"""

import math

import numpy as np


def conv(x, kernel, stride=1):
    """A convolution padded by half its kernel's size on every side."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = (x.shape[1] - size) // stride + 1
    y = np.zeros((len(x), out, out, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = x[:, i : i + stride * out : stride, j : j + stride * out : stride]
            y = y + window @ kernel[i, j].astype(np.float64)
    return y


def maximum(x, size, stride, pad):
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    x = np.pad(x, pads, constant_values=-np.inf)
    out = (x.shape[1] - size) // stride + 1
    y = np.full((len(x), out, out, x.shape[-1]), -np.inf)
    for i in range(size):
        for j in range(size):
            y = np.maximum(
                y, x[:, i : i + stride * out : stride, j : j + stride * out : stride]
            )
    return y


def relu(x):
    return np.maximum(x, 0)


def linear(x, p):
    return x @ p["kernel"].astype(np.float64) + p.get("bias", 0)


class Norms:
    """Batch normalisations by path; `after` has the running statistics of a pass."""

    def __init__(self, params, stats, train):
        self.params, self.stats, self.train, self.after = params, stats, train, {}

    def __call__(self, x, path):
        p, s = self.params, self.stats
        for key in path.split("/"):
            p, s = p[key], s[key]
        mean, var = s["mean"], s["var"]
        if self.train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        self.after[path] = tuple(
            0.9 * s[k] + 0.1 * v for k, v in (("mean", mean), ("var", var))
        )
        return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def cifar_resnet(params, norm, x, blocks):
    """Section 4.2 of the paper, with 1x1 convolutions as shortcuts (option B)."""
    x = relu(norm(conv(x, params["stem"]["kernel"]), "stem_norm"))
    for stage in (1, 2, 3):
        for i in range(blocks):
            name = f"stage{stage}_block{i}"
            p = params[name]
            stride = 2 if stage > 1 and i == 0 else 1
            y = relu(norm(conv(x, p["conv1"]["kernel"], stride), f"{name}/norm1"))
            y = norm(conv(y, p["conv2"]["kernel"]), f"{name}/norm2")
            if stage > 1 and i == 0:
                x = conv(x, p["shortcut"]["kernel"], stride)
                x = norm(x, f"{name}/shortcut_norm")
            x = relu(x + y)
    return linear(x.mean((1, 2)), params["head"])


def imagenet_resnet(params, norm, x, blocks):
    """torchvision's: stem 7x7/2, maximum 3x3/2, strides in the 3x3 convolution."""
    x = relu(norm(conv(x, params["stem"]["kernel"], 2), "stem_norm"))
    x = maximum(x, 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            name = f"stage{stage}_block{i}"
            p = params[name]
            number = sum(key.startswith("conv") for key in p)
            strided = {2: 1, 3: 2}[number]
            y = x
            for j in range(1, number + 1):
                stride = 2 if j == strided and stage > 1 and i == 0 else 1
                y = norm(conv(y, p[f"conv{j}"]["kernel"], stride), f"{name}/norm{j}")
                y = relu(y) if j < number else y
            if "shortcut" in p:
                stride = 2 if stage > 1 else 1
                x = conv(x, p["shortcut"]["kernel"], stride)
                x = norm(x, f"{name}/shortcut_norm")
            x = relu(x + y)
    return linear(x.mean((1, 2)), params["head"])


def wide_resnet(params, norm, x, blocks):
    """Section 2 of the paper, with the shortcut from the activated input."""
    x = conv(x, params["stem"]["kernel"])
    for stage in (1, 2, 3):
        for i in range(blocks):
            name = f"stage{stage}_block{i}"
            p = params[name]
            stride = 2 if stage > 1 and i == 0 else 1
            a = relu(norm(x, f"{name}/norm1"))
            y = conv(a, p["conv1"]["kernel"], stride)
            y = conv(relu(norm(y, f"{name}/norm2")), p["conv2"]["kernel"])
            if i == 0:
                x = conv(a, p["shortcut"]["kernel"], stride)
            x = x + y
    return linear(relu(norm(x, "norm")).mean((1, 2)), params["head"])


def vgg(params, norm, x, counts):
    """Stages of `counts` convolutions, with a pooling before each but the first."""
    number = 0
    for stage, count in enumerate(counts):
        x = maximum(x, 2, 2, 0) if stage else x
        for _ in range(count):
            number += 1
            x = conv(x, params[f"conv{number}"]["kernel"])
            x = relu(norm(x, f"norm{number}"))
    return linear(x.mean((1, 2)), params["head"])


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def exact_gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x):
    """RoPE in complex numbers: pairs are features i and i + F/2 of `[N, T, h, F]`."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    t, i = np.arange(x.shape[1]), np.arange(half)
    z = z * np.exp(1j * t[:, None] / 10_000 ** (i / half))[None, :, None]
    return np.concatenate([z.real, z.imag], -1)


def block(x, p, heads, gelu, causal=False, rotary=False):
    n, t, _ = x.shape
    y, a = layer_norm(x, p["norm1"]), p["attention"]
    q, k, v = (
        linear(y, a[name]).reshape(n, t, heads, -1)
        for name in ("query", "key", "value")
    )
    if rotary:
        q, k = turned(q), turned(k)
    scores = np.einsum("nthd,nshd->nhts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("nhts,nshd->nthd", weights, v).reshape(x.shape)
    x = x + linear(y, a["out"])
    y = gelu(linear(layer_norm(x, p["norm2"]), p["mlp1"]))
    return x + linear(y, p["mlp2"])


def patches(params, x, patch):
    n, side, _, channels = x.shape
    grid = side // patch
    x = x.reshape(n, grid, patch, grid, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    kernel = params["kernel"]
    x = x.reshape(n, grid * grid, -1) @ kernel.reshape(-1, kernel.shape[-1])
    return x + params["bias"]


def vit(params, x, patch, heads, depth):
    """Mean pooling instead of a class token."""
    x = patches(params["embed"], x, patch) + params["position_embedding"]
    for i in range(depth):
        x = block(x, params[f"block{i}"], heads, tanh_gelu)
    return linear(layer_norm(x, params["norm"]).mean(1), params["head"])


def deit(params, x, patch, heads, depth):
    """The logits of each head, as in timm: one, or two with a distillation token."""
    x = patches(params["embed"], x, patch)
    names = [k for k in ("class_token", "distillation_token") if k in params]
    tokens = [np.tile(params[name], (len(x), 1, 1)) for name in names]
    x = np.concatenate([*tokens, x], 1) + params["position_embedding"]
    for i in range(depth):
        x = block(x, params[f"block{i}"], heads, exact_gelu)
    x = layer_norm(x, params["norm"])
    heads_ = ("head", "distillation_head")[: len(names)]
    return [linear(x[:, i], params[name]) for i, name in enumerate(heads_)]


def tinylm(params, tokens, heads, depth):
    x = params["token_embedding"][tokens].astype(np.float64)
    rotary = "position_embedding" not in params
    if not rotary:
        x = x + params["position_embedding"][: tokens.shape[1]]
    for i in range(depth):
        p = params[f"block{i}"]
        x = block(x, p, heads, tanh_gelu, causal=True, rotary=rotary)
    x = layer_norm(x, params["norm"])
    if "head" in params:
        return linear(x, params["head"])
    return x @ params["token_embedding"].T


def mlp(params, x, layers):
    x = x.reshape(len(x), -1)
    for i in range(1, layers + 1):
        x = relu(linear(x, params[f"hidden{i}"]))
    return linear(x, params["head"])
