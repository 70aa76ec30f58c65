"""The facts of a data set that a run keeps, so that its network can be used without it.

A network maps images of one shape, normalised by the statistics of its training set, to
classes in one order. These facts are derived from the data. They are in `config.json`,
and never derived again: a class folder renamed later must not permute the labels, nor
more images move the normalisation.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from zosam_jax.runs import schema
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON

Task = Literal["classification", "multilabel", "regression", "segmentation"]
"""What the labels of a data set are for, see `zosam_jax.data.Task`."""


class Described(Protocol):
    """A data set, as `zosam_jax.data` has them."""

    @property
    def name(self) -> str:
        """The name given to `load`."""
        ...

    @property
    def kind(self) -> Literal["image", "text"]:
        """What the examples are."""
        ...

    @property
    def task(self) -> Task:
        """What the labels are for."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, or of each token."""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image; `(T,)` of text."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        ...

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        ...

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a network needs to know of its data set.

    Attributes:
      name: Name of the data set.
      kind: "image" or "text".
      class_names: Name of each class, in the order of the network's outputs.
      image_shape: Height, width and channels of an image; `(T,)` of text.
      mean: Mean of each channel of `images / 255`; empty for text.
      std: Standard deviation of each channel of `images / 255`; empty for text.
      resize: Shorter side to which a test image is resized before its center is
        cropped, in pixels; None if the images were used as they are.
      num_train: Number of training examples, without those held out.
      num_test: Number of test examples.
      task: What the outputs are: the classes, of which an example has one, or several
        ("multilabel"), or each of its pixels one ("segmentation"); or values
        ("regression").
    """

    name: str
    kind: Literal["image", "text"]
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    num_train: int
    num_test: int
    task: Task = "classification"

    @property
    def score(self) -> str:
        """What the recorded accuracy is, in a word."""
        return _SCORES[self.task]

    @property
    def num_classes(self) -> int:
        """Number of classes, or of different tokens."""
        return len(self.class_names)

    def record(self) -> JSON:
        """Returns the facts as `config.json` has them."""
        found = dataclasses.asdict(self)
        # As before there were other tasks.
        if self.task == "classification":
            del found["task"]
        return found

    def misfit(self, now: "DatasetFacts") -> str | None:
        """Returns why the network cannot be used on a data set, or None.

        Args:
          now: The facts of that data set.
        """
        if now.kind != self.kind or now.image_shape != self.image_shape:
            return (
                f"its examples are {_examples(now)}; those that the network was "
                f"trained on are {_examples(self)}"
            )
        if now.task != self.task:
            return f"its labels are of {now.task}, and the network's of {self.task}"
        if now.class_names == self.class_names:
            return None
        if now.num_classes != self.num_classes:
            return (
                f"it has {now.num_classes} classes; those of the network are "
                f"{self.num_classes}: {_listed(self.class_names)}"
            )
        pairs = zip(self.class_names, now.class_names, strict=True)
        place, (old, new) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        return (
            f"its class {place} is {new!r}, where that of the network is {old!r}, so "
            "its labels mean other classes"
        )

    def changes(self, now: "DatasetFacts") -> list[str]:
        """Returns how a data set differs that the network can be used on.

        Args:
          now: The facts of that data set.
        """
        found: list[str] = []
        if (now.mean, now.std) != (self.mean, self.std):
            found.append(
                f"the channel statistics of {now.name} differ from those of the "
                "training, which are used"
            )
        if now.resize != self.resize and None not in (now.resize, self.resize):
            found.append(
                f"test images are resized to {self.resize} pixels as in the training, "
                f"not to {now.resize}"
            )
        for part in ("num_train", "num_test"):
            old, new = getattr(self, part), getattr(now, part)
            if old != new:
                what = "training" if part == "num_train" else "test"
                found.append(
                    f"{now.name} has {new:,} {what} examples; it had {old:,} when the "
                    "run began"
                )
        return found


def of(dataset: Described) -> DatasetFacts:
    """Returns the facts of a data set.

    Args:
      dataset: A `zosam_jax.data.Dataset` or `zosam_jax.data.Streamed`.
    """
    return DatasetFacts(
        name=dataset.name,
        kind=dataset.kind,
        class_names=tuple(map(str, dataset.class_names)),
        image_shape=tuple(map(int, dataset.image_shape)),
        mean=tuple(map(float, dataset.mean)),
        std=tuple(map(float, dataset.std)),
        resize=getattr(dataset, "resize", None),
        num_train=dataset.num_train,
        num_test=dataset.num_test,
        task=dataset.task,
    )


_SCORES = {
    "classification": "accuracy",
    "multilabel": "label accuracy",
    "regression": "R²",
    "segmentation": "mean IoU",
}


_ENTRIES = {
    "name": schema.TEXT,
    "kind": schema.one_of("image", "text"),
    "class_names": schema.list_of(schema.TEXT),
    "image_shape": schema.list_of(schema.WHOLE),
    "mean": schema.list_of(schema.NUMBER),
    "std": schema.list_of(schema.POSITIVE),
    "resize": schema.or_null(schema.WHOLE),
    "num_train": schema.WHOLE,
    "num_test": schema.WHOLE,
}


def score_of(record: object) -> str:
    """Returns `DatasetFacts.score` of a record of facts, of which nothing is checked.

    >>> score_of({"task": "regression"}), score_of(None)
    ('R²', 'accuracy')
    """
    task = record.get("task") if isinstance(record, dict) else None
    return _SCORES.get(str(task), "accuracy")


def score_title(title: str, scores: Collection[str]) -> str:
    """Returns a title of accuracies that names what the accuracies are.

    Args:
      title: A title with the word "accuracy".
      scores: The scores that stand under it: "accuracy", "label accuracy", "R²",
        "mean IoU".

    >>> score_title("test accuracy, %", ["R²"])
    'test R², %'
    >>> score_title("test accuracy", ["accuracy", "R²"])
    'test accuracy or R²'
    """
    if not set(scores) - {"accuracy"}:
        return title
    named = [score for score in _SCORES.values() if score in scores]
    return title.replace("accuracy", " or ".join(named), 1)


def read(config: JSON, path: Path) -> DatasetFacts | None:
    """Returns the facts in a `config.json`; None if an older version wrote it.

    Args:
      config: The contents of the file.
      path: The file, for messages.

    Raises:
      RunError: The facts are damaged.
    """
    found = config.get("dataset")
    if found is None:
        return None
    tasks = {"task": schema.one_of(*_SCORES)}
    wrong = schema.fault(found, _ENTRIES, tasks) or _inconsistent(found)
    if wrong is not None:
        raise RunError(
            f"{path} is damaged: in 'dataset', {wrong}. These facts of the data set "
            "are part of the network: restore the file from a copy. If the data set "
            "is still as it was, delete the entry 'dataset': the facts are then "
            "derived from it again."
        )
    return from_record(found)


def from_record(record: JSON) -> DatasetFacts:
    """Returns the facts of which `DatasetFacts.record` made a record, as JSON has it.

    >>> record = {"name": "x", "kind": "text", "class_names": ["a"], "image_shape": [8]}
    >>> rest = {"mean": [], "std": [], "resize": None, "num_train": 2, "num_test": 1}
    >>> from_record(record | rest).image_shape
    (8,)
    """
    values: dict[str, Any] = {
        name: tuple(record[name]) if isinstance(record[name], list) else record[name]
        for name in _ENTRIES
    }
    return DatasetFacts(**values, task=record.get("task", "classification"))


def _inconsistent(found: JSON) -> str | None:
    """Returns how entries that are right by themselves contradict each other."""
    shape, is_image = found["image_shape"], found["kind"] == "image"
    if len(shape) != (3 if is_image else 1) or 0 in shape:
        return f"'image_shape' is {shape}"
    channels = shape[-1] if is_image else 0
    for name in ("mean", "std"):
        if len(found[name]) != channels:
            return f"{name!r} has {len(found[name])} numbers for {channels} channels"
    if not found["class_names"]:
        return "'class_names' is empty"
    return None


def _examples(facts: DatasetFacts) -> str:
    size = " x ".join(map(str, facts.image_shape))
    return f"images of {size}" if facts.kind == "image" else f"texts of {size} tokens"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
