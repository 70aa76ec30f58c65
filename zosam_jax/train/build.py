"""From a configuration to an `Experiment`: every object is made here, once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import _check, data, models, sparsity, tree
from zosam_jax._types import Aux, Params, Schedule, Seed, SharedOptions, ValueFn
from zosam_jax.data.augment import Augmentation
from zosam_jax.gradients.methods.wsam import decoupled
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs import dataset_facts
from zosam_jax.runs.code_names import check_code
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import (
    constructors,
    criteria,
    learning_rates,
    loss,
    optimizers,
    scores,
    sharding,
    successive,
)
from zosam_jax.train.examples import (
    Data,
    Images,
    hold_out,
    labelled_images,
    normalized,
    with_augmentation,
    with_label_noise,
)
from zosam_jax.train.experiment import (
    Criterion,
    Experiment,
    Loss,
    Model,
    ModelState,
    Optimization,
)
from zosam_jax.train.named_method import Needs
from zosam_jax.train.objects import Objects, check_model, loss_name

if TYPE_CHECKING:
    from zosam_jax.train.choices import Choices

# The advice if the data set is of a kind that the model does not take.
_MISFIT = {
    "text": "{0.dataset} is text, and model={0.model!r} is for images. Say --model "
    "tinylm, or start from --preset tinylm.",
    "image": "{0.dataset} are images, and model={0.model!r} is for text. Say --model "
    "resnet20, or --dataset pydoc.",
}


def experiment(
    config: TrainConfig,
    given: Objects,
    chosen: "Choices",
    facts: DatasetFacts | None = None,
    *,
    examples: bool = True,
    of_all: bool = False,
) -> Experiment:
    """Returns the objects of a run, all but its teacher; trains and writes nothing.

    Args:
      config: The configuration.
      given: Objects in place of what the configuration names.
      chosen: What `choices.choose` returns for both.
      facts: The facts of the data set that the run keeps, which then hold in place of
        those of the data set. None: those of the data set.
      examples: Whether to load the data set, if none is given. Without it, `facts` must
        be there, and nothing can be trained or evaluated.
      of_all: Whether to use the devices of all processes, and to split the state over
        them as the configuration says; or those of this process, each with all of it.

    Raises:
      ValueError: The configuration, its data, model and devices do not fit together.
      zosam_jax.data.DatasetError: The data set is missing or damaged, or `facts` are
        those of other classes or other images.
    """
    mesh = sharding.mesh(config.fsdp if of_all else 1, of_all=of_all)
    _check_model(config, given)
    found = _examples(config, given, facts, mesh.size, are_needed=examples)
    facts = found.facts
    model = _model(config, given, chosen, facts)
    shape = facts.image_shape
    initialize = functools.partial(models.initialize, model, image_shape=shape)
    params, model_state = jax.eval_shape(initialize, jax.random.key(0))
    aux_like = model_state, scores.no_sums(facts, jnp.float32)
    total_steps = _optimizer_steps(config, facts)
    parts_of = optimization(config, given, chosen, total_steps, aux_like, facts.task)
    parts = parts_of(config.seed)
    _check_leaves(config, chosen, parts.method, params)
    return Experiment(
        **found._asdict(),
        label_smoothing=config.label_smoothing,
        batch_size=config.batch_size,
        workers=config.workers,
        model=model,
        initialize=initialize,
        loss=_loss(config, given, facts),
        dtype=jnp.dtype(config.dtype),
        teacher=None,
        probe_model=_probe_model(config, model),
        probe_trains=_probe_trains(config, model, model_state),
        ema=config.ema,
        score_images=_score_images(config, found.dataset),
        accumulate_steps=config.accumulate_steps,
        epochs=config.epochs,
        seed=config.seed,
        mesh=mesh,
        scans=_scans(config, found.dataset, mesh),
        labels=given.labels(config),
        optimization=parts_of,
        **parts._asdict(),
    )


def _loss(config: TrainConfig, given: Objects, facts: DatasetFacts) -> Loss:
    """Returns the given loss, or that of the task."""
    if facts.task != "classification":
        # Every pixel has one class.
        is_map = facts.task == "segmentation"
        for name in ("teacher",) if is_map else ("label_smoothing", "teacher"):
            if value := getattr(config, name):
                raise ValueError(
                    f"{name}={value!r} is for examples of one class each; the labels "
                    f"of {facts.name} are of {facts.task}. Leave it out."
                )
    if given.loss is None:
        return loss.LOSSES[facts.task]
    return loss.checked(given.loss, loss_name(given.loss))


def _check_leaves(
    config: TrainConfig,
    chosen: "Choices",
    method: SparseMethod | None,
    params: Params,
) -> None:
    """Raises `ValueError` unless parameters can be frozen, and layers counted."""
    paths = tree.paths(params)
    if config.layer_decay < 1:
        try:
            models.depths(paths)
        except ValueError as error:
            raise ValueError(f"layer_decay={config.layer_decay:g}: {error}") from error
    frozen = tree.matching("freeze", config.freeze, paths)
    if len(frozen) == len(paths):
        raise ValueError(f"freeze={list(config.freeze)} leaves nothing to train.")
    takes = () if chosen.method is None else chosen.method.takes
    # A method of units prunes all that is left of a unit.
    takes_patterns = "dense" in takes and "groups" not in takes
    if method is None or not frozen or takes_patterns:
        return
    masks = jax.tree.leaves(jax.eval_shape(method.init, params).masks)
    for path, mask in zip(paths, masks, strict=True):
        if path in frozen and not tree.is_dense(mask):
            raise ValueError(
                f"freeze: {path} does not move, and "
                f"method={chosen.method_name(method)!r} would prune it. Keep it dense "
                "in the method, or do not freeze it."
            )


def _check_model(config: TrainConfig, given: Objects) -> None:
    """Raises `ValueError` if there is no such model, before the data set is loaded."""
    if given.model is None:
        check_code("model", config.model)
        _check.one_of("model", config.model, models.names())


def _score_images(config: TrainConfig, dataset: Data | None) -> int:
    """Returns `score_images`, if each class has as many images, in memory."""
    wanted = config.score_images
    # Without its examples, a run is only loaded.
    if not wanted or dataset is None:
        return wanted
    dataset = labelled_images(config, "score_images", dataset)
    sizes = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    least = int(sizes.argmin())
    if sizes[least] < wanted:
        raise ValueError(
            f"score_images={wanted} is more than the {sizes[least]} training images of "
            f"class {dataset.class_names[least]!r}."
        )
    return wanted


def _scans(config: TrainConfig, dataset: Data | None, mesh: jax.sharding.Mesh) -> bool:
    if isinstance(dataset, data.Streamed):
        return False
    if len({d.process_index for d in mesh.devices.flat}) > 1:
        if config.loop == "scan":
            raise ValueError(
                "loop='scan' sizes its blocks of steps by a clock, and the clocks of "
                "several processes differ. Leave it out."
            )
        return False
    # Convolution gradients inside a compiled loop are slow on XLA:CPU.
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return not is_cpu if config.loop == "auto" else config.loop == "scan"


def _optimizer_steps(config: TrainConfig, facts: DatasetFacts) -> int:
    batches = facts.num_train // config.batch_size * config.epochs
    _check.whole("epochs: the number of steps", max(batches, 1))
    if batches < config.accumulate_steps:
        raise ValueError(
            f"accumulate_steps={config.accumulate_steps} is more than the {batches} "
            "batches of the run, which would not make a step."
        )
    return batches // config.accumulate_steps


def optimization(
    config: TrainConfig,
    given: Objects,
    chosen: "Choices",
    total_steps: int,
    aux_like: Aux,
    task: data.Task = "classification",
) -> Callable[[Seed], Optimization]:
    """Returns `seed -> gradient, sparse method and the optimizer around them`.

    Their checks do not depend on the seed, which may be traced.

    Args:
      config: The configuration.
      given: The given objects.
      chosen: What the names stand for.
      total_steps: Optimizer steps of the whole run.
      aux_like: Shapes of the aux of `value_fn`.
      task: The task of the labels.
    """
    # Patterns of the model's own dense parameters, which are no kernels either.
    own: tuple[str, ...] = ()
    if config.model in models.names():
        own = models.dense_paths(config.model)
    rate = None
    if not isinstance(given.optimizer, optax.GradientTransformation):
        rate = learning_rates.schedule(config, total_steps)
    gradient = _gradient(config, given, chosen, total_steps, rate, aux_like)
    rule = _rule(config, given, gradient, rate, own)
    needs = Needs(
        total_steps,
        dense=(*own, *config.dense, *config.freeze),
        groups=lambda: chosen.unit_groups(config),
        seed=config.seed,
    )

    def with_seed(seed: Seed) -> Optimization:
        drawn, method = needs._replace(seed=seed), given.method
        if chosen.method is not None:
            method = chosen.method.build(config, drawn)
        assert method is None or isinstance(method, SparseMethod)
        chosen.check_together(config, gradient, method)
        options = SharedOptions(seed=seed)
        if config.probe_fraction < 1:
            options["ascent_fraction"] = config.probe_fraction
        seeded = gradient.with_options(**options)
        optimizer_of = functools.partial(
            _optimizer, rule, accumulate_steps=config.accumulate_steps
        )
        optimizer = functools.partial(optimizer_of, gradient=seeded)
        criterion = _criterion(config, chosen, drawn, optimizer, task)
        made = optimizer(method)
        return Optimization(seeded, method, criterion, made, optimizer_of, rate)

    return with_seed


def _rule(
    config: TrainConfig,
    given: Objects,
    gradient: GradientEstimator,
    rate: Schedule | None,
    own: tuple[str, ...],
) -> optax.GradientTransformation:
    """Returns the update rule, with a rate for each leaf where that is asked for."""
    rule = given.optimizer
    if not isinstance(rule, optax.GradientTransformation):
        assert rate is not None
        rule = optimizers.update_rule(config, rate, own, rule)
    if config.successive_cosine:
        rule = optax.chain(successive.successive_cosine(), rule)
    rule = optimizers.of_trained(rule, config.freeze)
    if gradient.decoupled:
        rule = _decoupled(rule, rate)
    return optimizers.by_leaf(rule, config.freeze, config.layer_decay)


def _criterion(
    config: TrainConfig,
    chosen: "Choices",
    needs: Needs,
    optimizer: Callable[[SparseMethod], optax.GradientTransformationExtraArgs],
    task: data.Task,
) -> Criterion | None:
    """Returns how the method chooses its masks by the first batch, if it does."""
    named = chosen.method
    if named is None or not named.row.scores_by:
        return None

    def scored(value_fn: ValueFn) -> optax.GradientTransformationExtraArgs:
        return optimizer(named.build(config, needs._replace(value_fn=value_fn)))

    name = named.row.scores_by
    if name == "cooled loss" and task not in ("classification", "segmentation"):
        # Only the outputs of a softmax can be cooled.
        name = "loss"
    return Criterion(criteria.SCORES[name], scored)


def _gradient(
    config: TrainConfig,
    given: Objects,
    chosen: "Choices",
    total_steps: int,
    rate: Schedule | None,
    aux_like: Aux,
) -> GradientEstimator:
    gradient = given.gradient
    if chosen.gradient is not None:
        made = chosen.gradient.build(config, total_steps, rate, aux_like)
        if gradient is None:
            return made
        gradient = made
    assert isinstance(gradient, GradientEstimator)
    if chosen.gradient is None and config.freeze and gradient.takes("exclude"):
        left_out = _check.patterns("exclude", gradient.option("exclude"))
        gradient = gradient.with_options(exclude=(*left_out, *config.freeze))
    if gradient.decoupled and config.clip_norm:
        raise ValueError(
            f"clip_norm={config.clip_norm:g} would clip one part of a gradient in two "
            "parts. Leave it out, and say max_norm= in the gradient= that you give."
        )
    gradient = gradient.with_options(has_aux=True, aux_like=aux_like)
    aux_from = "descent" if config.probes else config.aux_from
    return gradient if aux_from is None else gradient.with_options(aux_from=aux_from)


def _decoupled(
    rule: optax.GradientTransformation, rate: Schedule | None
) -> optax.GradientTransformation:
    if rate is None:
        raise ValueError(
            "a gradient in two parts (wsam with decouple=True) steps with the learning "
            "rate, which an optimizer= of your own does not tell. Say decouple=False."
        )
    return decoupled(rule, rate)


def _optimizer(
    rule: optax.GradientTransformation,
    method: SparseMethod | None,
    gradient: GradientEstimator,
    accumulate_steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole optimizer: gradient, update rule and masks."""
    if method is not None:
        return sparsity.sparsify(
            rule, method, gradient=gradient, accumulate_steps=accumulate_steps
        )
    if accumulate_steps > 1:
        rule = optax.MultiSteps(rule, accumulate_steps).gradient_transformation()
    return optax.chain(gradient, rule)


def _model(
    config: TrainConfig, given: Objects, chosen: "Choices", facts: DatasetFacts
) -> Model:
    """Returns the given model, or the one that the configuration names."""
    model = given.model
    if model is None:
        if models.kind(config.model) != facts.kind:
            raise ValueError(_MISFIT[facts.kind].format(config))
        _check_head(config, facts)
        model = create_model(config, facts, chosen)
    elif constructors.is_one(model):
        model = _own_model(config, model, facts, chosen)
    if getattr(model, "distillation", False) and config.teacher is None:
        raise ValueError(
            "model_options: distillation=True adds a head that learns from a teacher. "
            "Say --teacher RUN, the folder of a finished run."
        )
    return model


def _check_head(config: TrainConfig, facts: DatasetFacts) -> None:
    """Raises `ValueError` if pixels need classes, and the model has no such head."""
    if facts.task != "segmentation":
        return
    fit = [x for x in models.names() if "segmentation" in models.options(x)]
    if config.model not in fit:
        raise ValueError(
            f"model={config.model!r} has no head for segmentation, and {facts.name} "
            f"has a class for each pixel. These have one: {', '.join(fit)}."
        )


def _own_model(
    config: TrainConfig,
    make: Callable[..., Model],
    facts: DatasetFacts,
    chosen: "Choices",
) -> Model:
    """Returns what a user's constructor makes."""
    values = {
        "num_classes": facts.num_classes,
        "image_size": facts.image_shape[0],
        "width": config.width,
        "dtype": jnp.dtype(config.dtype),
    }
    fields = {"width": config.width} if config.width != 1 else {}
    constructors.refuse_idle("model", constructors.takes(make), fields)
    model = constructors.call("model", make, values, chosen.model_options)
    check_model(model)
    return model


def create_model(config: TrainConfig, facts: DatasetFacts, chosen: "Choices") -> Model:
    """Returns the model that a configuration names.

    Args:
      config: The configuration.
      facts: The facts of the data set: the number of classes and the image size.
      chosen: What the names stand for; gives the options of the model.

    Raises:
      ValueError: An option is unknown or out of range, or the examples do not fit.
    """
    of_task = {"segmentation": True} if facts.task == "segmentation" else {}
    return models.create(
        config.model,
        **of_task,
        num_classes=facts.num_classes,
        width=config.width,
        image_size=facts.image_shape[0],
        dtype=config.dtype,
        **chosen.model_options,
    )


def _probe_model(config: TrainConfig, model: Model) -> Model:
    """Returns the model of the ascent step."""
    if config.probe_dtype in ("same", config.dtype):
        return model
    if not hasattr(model, "dtype"):
        raise ValueError(
            f"probe_dtype={config.probe_dtype!r} needs a model with a field dtype; "
            f"{type(model).__name__} has none."
        )
    return model.clone(dtype=config.probe_dtype)


def _probe_trains(config: TrainConfig, model: Model, model_state: ModelState) -> bool:
    """Returns whether the ascent step runs the model as in training."""
    if config.probe_norm == "running" and "batch_stats" not in model_state:
        raise ValueError(
            f"probe_norm='running' is for models with BatchNorm; "
            f"{type(model).__name__} has none. Leave it out."
        )
    return config.probe_norm == "batch"


class _Examples(NamedTuple):
    """The fields of `Experiment` that come from the data set."""

    dataset: Data | None
    validation: Images | None
    clean_labels: np.ndarray | None
    augmentation: Augmentation | None
    facts: DatasetFacts
    label_variance: float


def _examples(
    config: TrainConfig,
    given: Objects,
    facts: DatasetFacts | None,
    devices: int,
    *,
    are_needed: bool,
) -> _Examples:
    if not are_needed and given.dataset is None and facts is not None:
        return _Examples(None, None, None, None, facts, 0.0)
    dataset, validation = _data(config, given, facts)
    facts = facts or dataset_facts.of(dataset)
    _check_batch(config, facts.num_train, devices)
    dataset, clean_labels = with_label_noise(config, dataset)
    dataset, augmentation = with_augmentation(config, dataset, facts)
    variance = _label_variance(dataset)
    return _Examples(dataset, validation, clean_labels, augmentation, facts, variance)


def _label_variance(dataset: Data) -> float:
    if not isinstance(dataset, data.Dataset) or dataset.task != "regression":
        return 0.0
    return data.label_variance(dataset.train_labels)


def _check_batch(config: TrainConfig, images: int, devices: int) -> None:
    size = config.batch_size
    if size > images:
        raise ValueError(
            f"batch_size={size} is more than the {images} training images. "
            f"Use batch_size={images} or less."
        )
    if size % devices:
        raise ValueError(
            f"batch_size={size} must be a multiple of the {devices} devices; "
            f"{max(size // devices, 1) * devices} would do."
        )


def _data(
    config: TrainConfig, given: Objects, facts: DatasetFacts | None
) -> tuple[Data, Images | None]:
    """Returns the data set and the held-out validation images."""
    found = given.dataset or _load(config, facts)
    assert isinstance(found, data.Dataset | data.Streamed)
    found = normalized(config, found)
    if facts is not None:
        wrong = facts.misfit(dataset_facts.of(found))
        if wrong is not None:
            raise data.DatasetError(
                f"{found.name} is not the data set of the run in {config.folder}: "
                f"{wrong}. Restore it as it was, or use one of the same classes."
            )
        if isinstance(found, data.Streamed) and facts.resize is not None:
            found = dataclasses.replace(found, resize=facts.resize)
    return hold_out(config, found)


def _load(config: TrainConfig, facts: DatasetFacts | None) -> Data:
    check_code("dataset", config.dataset)
    size = config.image_size
    # A streamed set chooses a size by its images, unless the run has one already.
    own = facts.image_shape[0] if facts and facts.resize else None
    found = data.load(config.dataset, config.data_dir, image_size=size or own)
    if size is not None and isinstance(found, data.Dataset):
        raise ValueError(
            f"image_size={size}: the images of {config.dataset} are used as they are. "
            "Leave it out."
        )
    if config.workers and isinstance(found, data.Dataset):
        raise ValueError(
            f"workers={config.workers}: {config.dataset} is in memory, and nothing is "
            "decoded. Leave it out."
        )
    if config.loop == "scan" and isinstance(found, data.Streamed):
        raise ValueError(
            f"loop='scan': the images of {config.dataset} are streamed, batch by "
            "batch. Leave it out."
        )
    return found
