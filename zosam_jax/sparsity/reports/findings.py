"""The results of a sparsity report."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from zosam_jax.sparsity.reports import table


@dataclasses.dataclass(frozen=True)
class LeafReport:
    """A parameter leaf, or a layer of a leaf that is a stack.

    Attributes:
      path: Its key path; of a layer in a stack, with its index.
      shape: Its shape.
      weights: Number of its entries.
      live: Number of entries that are not pruned. If the report knows the units,
        entries that only feed pruned units do not count as live.
      sparse: Whether it has a mask.
      ever_live: Number of entries that were ever live; None if not known.
      flops_dense: Floating point operations of its products for one example, twice the
        multiply-adds, as if no weight were pruned; None without `forward`.
      flops_sparse: The same for live weights only.
      place: Its place in the order in which `forward` uses the leaves; None for a leaf
        without products.
      outputs: `(output units, output units without a live incoming weight)`; None for a
        leaf that is dense or no kernel.
      inputs: `(input units, input units without a live outgoing weight)`; likewise.
    """

    path: str
    shape: tuple[int, ...]
    weights: int
    live: int
    sparse: bool
    ever_live: int | None = None
    flops_dense: float | None = None
    flops_sparse: float | None = None
    place: int | None = None
    outputs: tuple[int, int] | None = None
    inputs: tuple[int, int] | None = None

    @property
    def density(self) -> float:
        """Live weights / weights; 1 for a leaf without entries."""
        return self.live / self.weights if self.weights else 1.0

    @property
    def whole(self) -> bool:
        """Whether nothing in it is or can be pruned."""
        return not self.sparse and self.live == self.weights

    @property
    def explored(self) -> float | None:
        """Fraction of its entries that were ever live; None if not known."""
        return table.ratio(self.ever_live, self.weights)

    @property
    def warning(self) -> str | None:
        """What is wrong with the mask, as a clause; None if nothing is."""
        if self.weights and not self.live:
            return "no live weight: the layer passes nothing on"
        parts = []
        if self.outputs and self.live < self.outputs[0]:
            parts.append(f"{self.live:,} live weights for {self.outputs[0]:,} outputs")
        for units, fault in (
            (self.outputs, "outputs have no live incoming weight"),
            (self.inputs, "inputs have no live outgoing weight"),
        ):
            # A few dead units are normal; a layer with half of them dead is not.
            if units and units[1] and 2 * units[1] >= units[0]:
                parts.append(f"{units[1]:,} of {units[0]:,} {fault}")
        return "; ".join(parts) or None


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """The result of `report`: `rows` and totals, to be printed or plotted.

    FLOPs are for one example, and None without `forward`. `sparsity` is over the sparse
    leaves, like the `sparsity=` of a method. `sparsity_all` is over all parameters.

    Attributes:
      rows: A `LeafReport` for every leaf, or layer of a stack, in flattening order.
      flops_other: FLOPs of products without a leaf, such as attention; they are in both
        totals.
      passes: `(F, B)`, the forward passes and the backward passes (each with its own
        forward pass) of the gradient estimator in one step.
      dense_gradient_every: Steps between gradients of all weights; None: never.
      mean_pruned: Pruned / finally pruned weights, averaged over the training.
      warnings: Sentences; collapsed layers and bottlenecks first.
      removable: Number of parameters that `compact` would cut out; None if the report
        does not know the units.
    """

    rows: tuple[LeafReport, ...]
    flops_other: float | None
    passes: tuple[float, float]
    dense_gradient_every: int | None
    mean_pruned: float
    warnings: tuple[str, ...]
    removable: int | None = None

    @property
    def weights(self) -> int:
        """Entries of all leaves."""
        return sum(row.weights for row in self.rows)

    @property
    def live(self) -> int:
        """Entries of all leaves that are not pruned."""
        return sum(row.live for row in self.rows)

    @property
    def sparse_weights(self) -> int:
        """Entries of the sparse leaves."""
        return sum(row.weights for row in self.rows if row.sparse)

    @property
    def sparse_live(self) -> int:
        """Entries of the sparse leaves that are not pruned."""
        return sum(row.live for row in self.rows if row.sparse)

    @property
    def sparsity(self) -> float:
        """Pruned fraction of the sparse leaves; 0 if there is none."""
        return 1 - self.sparse_live / self.sparse_weights if self.sparse_weights else 0

    @property
    def sparsity_all(self) -> float:
        """Pruned fraction of all parameters."""
        return 1 - self.live / self.weights if self.weights else 0.0

    @property
    def explored(self) -> float | None:
        """Fraction of the sparse leaves' weights that were ever live, ITOP's R_s."""
        seen = [row.ever_live for row in self.rows if row.sparse]
        known = [count for count in seen if count is not None]
        if len(known) < len(seen):
            return None
        return table.ratio(sum(known), self.sparse_weights)

    @property
    def inference_dense(self) -> float | None:
        """FLOPs of the forward pass of the dense network, f_D."""
        return self._forward([row.flops_dense for row in self.rows])

    @property
    def inference_sparse(self) -> float | None:
        """FLOPs of the forward pass of the sparse network, f_S."""
        return self._forward([row.flops_sparse for row in self.rows])

    @property
    def training_dense(self) -> float | None:
        """FLOPs of a training step of the dense network, with the same passes."""
        dense = self.inference_dense
        return None if dense is None else self._passes() * dense

    @property
    def training_sparse(self) -> float | None:
        """Mean FLOPs of a training step of the sparse network; see `report`."""
        dense = self.inference_dense
        sparse = self._forward([self._training(row) for row in self.rows])
        if dense is None or sparse is None:
            return None
        # f_D - f_S once: the backward pass by the weights runs over all of them, while
        # the forward pass and the backward pass by the activations stay sparse.
        every, extra = self.dense_gradient_every, 0.0
        if every is not None and self.passes[1]:
            extra = (dense - sparse) / (1 if every == 1 else every + 1)
        return self._passes() * sparse + extra

    def _passes(self) -> float:
        """Returns the cost of a step in forward passes."""
        # A backward pass takes two products for each of the forward pass.
        return self.passes[0] + 3 * self.passes[1]

    def _forward(self, flops: list[float | None]) -> float | None:
        if self.flops_other is None:
            return None
        return math.fsum([self.flops_other, *(x for x in flops if x is not None)])

    def _training(self, row: LeafReport) -> float | None:
        """Returns the FLOPs of a leaf at its mean density over the training."""
        if row.flops_dense is None or self.mean_pruned == 1:
            return row.flops_sparse
        return max(0.0, 1 - self.mean_pruned * (1 - row.density)) * row.flops_dense

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON: `rows`, `totals`, `assumptions`, `warnings`."""
        rows = [
            {
                **dataclasses.asdict(row),
                "density": row.density,
                "explored": row.explored,
            }
            for row in self.rows
        ]
        totals = {
            name: getattr(self, name)
            for name in (
                *("weights", "live", "sparse_weights", "sparse_live"),
                *("sparsity", "sparsity_all", "explored", "flops_other"),
                *("removable",),
                *("inference_dense", "inference_sparse"),
                *("training_dense", "training_sparse"),
            )
        }
        for name in ("inference", "training"):
            ratio = table.ratio(totals[f"{name}_sparse"], totals[f"{name}_dense"])
            totals[f"{name}_ratio"] = ratio
        return {
            "rows": [
                {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}
                for row in rows
            ],
            "totals": totals,
            "assumptions": {
                "passes": list(self.passes),
                "dense_gradient_every": self.dense_gradient_every,
                "mean_pruned": self.mean_pruned,
            },
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return table.text(self)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the density and the share of the FLOPs of every layer.

        Without `forward` it draws the share of the weights instead.

        Args:
          path: A file to write, with a suffix that Matplotlib knows; None: no file.

        Returns:
          A `matplotlib.figure.Figure`.
        """
        from zosam_jax.sparsity.reports import picture

        figure = picture.draw(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure
