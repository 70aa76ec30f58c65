"""`zosam export`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from zosam_jax.cli.own_code import OwnCode
from zosam_jax.runs.errors import RunError


@dataclasses.dataclass(frozen=True, slots=True)
class Export(OwnCode):
    """Write the network of a run to one file, with a model card beside it.

    A safetensors file has weights, masks (one bit a weight), classes and preprocessing.
    `zosam predict FILE PATH...` and `zs.load(FILE)` use it like the run. A StableHLO
    or ONNX file is the network as a program, which JAX or ONNX Runtime runs without
    this package.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a run, finished or not; or a safetensors file that was exported."""
    to: Literal["safetensors", "stablehlo", "onnx"] = "safetensors"
    """Format of the file. safetensors: arrays by name, which many languages read. \
stablehlo: a program for CPUs, NVIDIA GPUs and TPUs, which `jax.export.deserialize` \
reads; its classes and preprocessing are in a JSON file beside it. onnx: the same for \
ONNX Runtime."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in a safetensors file. float32: nothing is rounded. \
bfloat16: kernels and embeddings are rounded; biases, scales, statistics and masks are \
exact."""
    out: Path | None = None
    """The file. None: network.FORMAT in the run folder."""
    compact: bool = False
    """Cut out the units that nothing reads: the network is smaller and computes the \
same."""
    multiple: int = 1
    """With --compact, widths are rounded up to multiples of it."""
    reestimate: int | None = None
    """Number of training examples, as 10000, by which the statistics of BatchNorm are \
estimated anew: for weights that were pruned or averaged and not trained since. None: \
those of the run."""
    dataset: str | None = None
    """With --reestimate: data set with the classes of the run, as folder:PATH if the \
images have moved. None: that of the run."""
    data_dir: str | None = None
    """With --reestimate: TFDS directory. None: the directory of the run."""
    checkpoint: int | None = None
    """Step of one of the run's checkpoints. None: the last."""

    def execute(self, line: Sequence[str]) -> int:
        """Writes the file, prints its path and size, and returns the exit status."""
        del line
        from zosam_jax.cli import compilation_cache, terminal
        from zosam_jax.train import load_run

        self._check()
        compilation_cache.use()
        data = {"dataset": self.dataset, "data_dir": self.data_dir}
        net = load_run.load(
            self.run,
            checkpoint=self.checkpoint,
            examples=self.reestimate is not None,
            **{**data, **self.given()},
        )
        before = net.num_parameters
        try:
            if self.compact:
                net = net.compact(multiple=self.multiple)
                terminal.write(f"parameters: {before:,} -> {net.num_parameters:,}\n")
            if self.reestimate is not None:
                net = net.reestimate_batch_stats(self.reestimate)
                terminal.write("BatchNorm: statistics estimated anew\n")
        except ValueError as error:
            raise RunError(str(error)) from error
        place = self.out
        if place is None:
            folder = net.folder if net.folder.is_dir() else net.folder.parent
            place = folder / f"network.{self.to}"
        path = net.save(place, to=self.to, dtype=self.dtype)
        size, dense = path.stat().st_size, 4 * before
        terminal.write(
            f"{path}: {size:,} bytes, 1/{dense / size:.1f} of dense float32 weights "
            f"({dense:,} bytes); model card: {path.name}.md\n"
        )
        return 0

    def _check(self) -> None:
        """Raises `RunError` for an option without effect, or out of range."""
        if self.multiple != 1 and not self.compact:
            raise RunError(f"multiple={self.multiple} has no effect without --compact.")
        if self.dtype != "float32" and self.to != "safetensors":
            raise RunError(f"dtype={self.dtype} has no effect with --to {self.to}.")
        for name in ("dataset", "data_dir"):
            value = getattr(self, name)
            if value is not None and self.reestimate is None:
                raise RunError(f"{name}={value} has no effect without --reestimate.")
        if self.reestimate is not None and self.reestimate < 1:
            raise RunError(
                f"reestimate={self.reestimate} must be a number of examples, at least "
                "1."
            )
