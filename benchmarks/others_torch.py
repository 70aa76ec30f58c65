"""SGD and SAM in PyTorch, for `benchmarks.others`; needs PyTorch and NumPy alone.

    python others_torch.py WEIGHTS NETWORK RHO RATE MOMENTUM THREADS

WEIGHTS is an archive of NumPy with the weights of a network of `zosam_jax.models` by
their paths, and a batch. A request is a line of JSON, `[step, calls]`; the answer has
the loss before each call, and the seconds of all.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

Weights = dict[str, Any]
"""Tensors by the paths of the parameters."""


def mlp(weights: Weights, statistics: Weights | None, images: Any) -> Any:
    """Returns the logits of `zosam_jax.models.mlp.MLP`, `[N, K]`.

    Args:
      weights: The parameters.
      statistics: None or empty: nothing is normalized.
      images: `[N, features]`.
    """
    assert not statistics
    x = images
    for name in ("hidden1", "hidden2"):
        x = F.relu(F.linear(x, weights[f"{name}/kernel"], weights[f"{name}/bias"]))
    return F.linear(x, weights["head/kernel"], weights["head/bias"])


def resnet20(weights: Weights, statistics: Weights | None, images: Any) -> Any:
    """Returns the logits of the ResNet-20 of `zosam_jax.models`, `[N, K]`.

    Args:
      weights: The parameters.
      statistics: Running means and variances, which are updated; None: neither.
      images: `[N, C, H, W]`.
    """

    def norm(x: Any, name: str) -> Any:
        scale, bias = weights[f"{name}/scale"], weights[f"{name}/bias"]
        kept = (None, None)
        if statistics is not None:
            kept = statistics[f"{name}/mean"], statistics[f"{name}/var"]
        return F.batch_norm(x, *kept, scale, bias, training=True, momentum=0.1)

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel = weights[f"{name}/kernel"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = F.relu(norm(conv(images, "stem"), "stem_norm"))
    for stage in (1, 2, 3):
        for number in range(3):
            block = f"stage{stage}_block{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = F.relu(norm(conv(x, f"{block}/conv1", stride), f"{block}/norm1"))
            y = norm(conv(y, f"{block}/conv2"), f"{block}/norm2")
            if stride == 2:
                x = conv(x, f"{block}/shortcut", stride)
                x = norm(x, f"{block}/shortcut_norm")
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), weights["head/kernel"], weights["head/bias"])


NETWORKS = {"mlp": mlp, "resnet20": resnet20}


class Training:
    """A network and its optimizer, and its steps on one batch."""

    def __init__(
        self, found: Any, network: str, rho: float, rate: float, momentum: float
    ):
        """Takes the weights over.

        Args:
          found: The archive.
          network: A key of `NETWORKS`.
          rho: Radius of SAM.
          rate: Learning rate.
          momentum: Momentum of SGD.
        """
        kinds = {"params": {}, "batch_stats": {}}
        for path in found.files:
            kind, _, name = path.partition("/")
            if kind in kinds:
                kinds[kind][name] = _tensor(found[path])
        self.weights, self.statistics = kinds["params"], kinds["batch_stats"]
        self.leaves = [x.requires_grad_() for x in self.weights.values()]
        images = torch.from_numpy(found["images"])
        # Channels come last in memory, which is the faster layout on a CPU.
        self.images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images
        self.labels = torch.from_numpy(found["labels"]).long()
        self.network, self.rho = NETWORKS[network], rho
        self.sgd = torch.optim.SGD(self.leaves, lr=rate, momentum=momentum)

    def loss(self, statistics: Weights | None) -> Any:
        """Returns the mean cross-entropy of the batch.

        Args:
          statistics: As in the network.
        """
        logits = self.network(self.weights, statistics, self.images)
        return F.cross_entropy(logits, self.labels)

    def sgd_step(self) -> Any:
        """Steps, and returns the loss before the step."""
        self.sgd.zero_grad()
        loss = self.loss(self.statistics)
        loss.backward()
        self.sgd.step()
        return loss.detach()

    def sam_step(self) -> Any:
        """Steps, and returns the loss before the step."""
        self.sgd.zero_grad()
        loss = self.loss(self.statistics)
        loss.backward()
        with torch.no_grad():
            grads = [x.grad for x in self.leaves]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            moves = torch._foreach_mul(grads, self.rho / norm)
            torch._foreach_add_(self.leaves, moves)
        self.sgd.zero_grad()
        self.loss(None).backward()
        with torch.no_grad():
            torch._foreach_sub_(self.leaves, moves)
        self.sgd.step()
        return loss.detach()


def _tensor(value: np.ndarray) -> Any:
    """Returns a copy in the order of axes that PyTorch has."""
    x = torch.from_numpy(value)
    if x.ndim == 2:
        return x.T.contiguous()
    if x.ndim == 4:
        x = x.permute(3, 2, 0, 1)
        return x.contiguous(memory_format=torch.channels_last)
    return x.clone()


def main() -> None:
    """Answers the requests of the standard input."""
    archive, network = sys.argv[1:3]
    rho, rate, momentum = map(float, sys.argv[3:6])
    torch.set_num_threads(int(sys.argv[6]))
    steps: dict[str, Callable[[], Any]] = {}
    for kind in ("eager", "compiled"):
        for name in ("SGD", "SAM"):
            training = Training(np.load(archive), network, rho, rate, momentum)
            if kind == "compiled":
                training.loss = torch.compile(training.loss, fullgraph=True)
            step = training.sgd_step if name == "SGD" else training.sam_step
            steps[f"{name}, {kind}"] = step
    for line in sys.stdin:
        step, calls = json.loads(line)
        start = time.perf_counter()
        losses = [float(steps[step]()) for _ in range(calls)]
        seconds = time.perf_counter() - start
        answer = {"losses": losses, "seconds": seconds, "torch": torch.__version__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
