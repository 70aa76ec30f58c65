"""The augmentation composed of options: order, keys, errors, one compilation."""

import re

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.data import augment
from zosam_jax.data.augment import pipeline

K = 10
DOCUMENTED = str(augment.compose.__doc__)
MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.2, 0.3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 12, 12, 3), np.uint8)
LABELS = RNG.integers(0, K, 7).astype(np.int32)
KEY = jax.random.key(11)
# DeiT's, but for the mixup=0.8 of its default: 1 is sooner compiled.
DEIT = ("resized_crop", "flip", "randaugment", "erasing", "mixup=1", "cutmix")


def make(options, channels=3, **changed):
    known = {
        "num_classes": K,
        "crop_padding": 2,
        "flip": True,
        "mean": MEAN[:channels],
        "std": STD[:channels],
    }
    return augment.compose(options, **(known | changed))


def run(options, key=KEY, images=IMAGES, **changed):
    augmentation = make(options, images.shape[-1], **changed)
    return jax.jit(augmentation)(key, images, LABELS[: len(images)])


def test_the_data_sets_own_is_the_crop_and_flip_that_runs_depend_on():
    images, labels = run(None)
    expected = augment.random_crop_flip(KEY, IMAGES, 2, True)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, LABELS)
    assert make(None) == make(("crop", "flip")) == make(("flip", "crop=2"))
    assert make(None, crop_padding=0) == make(("flip",))
    assert make(None, flip=False, crop_padding=0) == make(())
    # Its draws, fixed once: the numbers of earlier versions.
    draws = jax.random.randint(KEY, (7, 3), 0, jnp.array([5, 5, 2]))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, (row, column, mirrored), ours in zip(padded, draws, images, strict=True):
        window = image[row : row + 12, column : column + 12]
        np.testing.assert_array_equal(ours, window[:, ::-1] if mirrored else window)


def test_nothing_is_done_without_options():
    images, labels = run(())
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def parts(key, images, labels):
    """DeiT's augmentation, written out."""
    keys = [jax.random.fold_in(key, stream) for stream in range(9)]
    x, n = images, len(images)
    window = augment.resized_crop_parameters(keys[2], x.shape, (0.08, 1.0))
    x = augment.resized_crop(x, window, (9, 9))
    x = augment.random_crop_flip(key, x, 0, True)
    x = augment.randaugment(x, augment.randaugment_parameters(keys[3], n, 9.0), MEAN)
    erasing = augment.erasing_parameters(keys[5], x.shape, 0.25)
    x = augment.erase(x, erasing, MEAN, STD)
    weight = augment.mixup_parameters(keys[6], 1.0)
    box, share = augment.cutmix_parameters(keys[7], x.shape, 1.0)
    use_cutmix = jax.random.bernoulli(keys[8])
    x = jnp.where(use_cutmix, augment.cutmix(x, box), augment.mixup(x, weight))
    weight = jnp.where(use_cutmix, share, weight)
    return x, augment.mix_labels(labels, weight, K)


def test_the_whole_pipeline_is_its_parts_in_order_for_every_key_and_compiled_once():
    augmentation = make(DEIT[::-1], image_size=9)
    traced = []

    @jax.jit
    def step(key, images, labels):
        traced.append(None)
        return augmentation(key, images, labels)

    expected = jax.jit(parts)
    results = []
    for key in jax.random.split(KEY, 4):
        images, targets = map(np.asarray, step(key, IMAGES, LABELS))
        again = step(key, IMAGES, LABELS)
        jax.tree.map(np.testing.assert_array_equal, (images, targets), again)
        x, y = map(np.asarray, expected(key, IMAGES, LABELS))
        # Levels may be rounded otherwise in another program.
        assert np.abs(images - x).max() <= 1.001
        assert np.mean(np.abs(images - x) > 1e-3) < 0.01
        np.testing.assert_allclose(targets, y, atol=1e-6)
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
        results.append(images)
    assert len(traced) == 1
    assert np.any(results[0] != results[1])


def test_mixup_and_cutmix_take_turns():
    both, keys = make(("mixup", "cutmix")), jax.random.split(KEY, 40)
    batch = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 200, np.uint8)])
    images, targets = jax.jit(jax.vmap(both, (0, None, None)))(keys, batch, LABELS[:2])
    kept = np.asarray(targets)[:, 0, LABELS[0]]
    is_cutmix = np.array([set(np.unique(x)) <= {0, 200} for x in np.asarray(images)])
    assert 8 <= is_cutmix.sum() <= 32  # 1e-4 outside for a fair coin
    # The weight of the own label is the own share of the image, whichever it is.
    own = 1 - np.asarray(images)[:, 0].mean((1, 2, 3)) / 200
    np.testing.assert_allclose(kept, own, atol=1e-6)


def test_switching_one_on_changes_no_others_draws():
    white = np.full((7, 12, 12, 3), 255, np.uint8)
    crop = np.asarray(run(("crop", "flip"), images=white)[0])
    cutout = np.asarray(run(("cutout=4",), images=white)[0]) != 255
    both, labels = run(("cutout=4", "crop", "flip"), images=white)
    expected = np.where(cutout, np.uint8([51, 128, 178]), crop)
    np.testing.assert_array_equal(both, expected)
    assert both.dtype == jnp.uint8
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, LABELS)


def test_streams_are_apart_from_the_keys_of_crop_and_flip():
    rows = pipeline.OPERATIONS.values()
    streams = [row.stream for row in rows if row.stream is not None]
    streams.append(pipeline._SWITCH)
    assert len(set(streams)) == len(streams)
    data = [jax.random.key_data(jax.random.fold_in(KEY, s)) for s in streams]
    inner = jax.random.key_data(jax.random.split(KEY))  # what randint draws from
    for key in data:
        assert not np.any(np.all(np.asarray(key) == np.asarray(inner), -1))


def test_a_single_image_of_a_single_pixel_and_channel():
    images = IMAGES[:1, :1, :1, :1]
    result, targets = run(("resized_crop", "flip", "cutmix"), images=images)
    np.testing.assert_array_equal(result, images)
    np.testing.assert_allclose(targets, np.eye(K)[LABELS[:1]], atol=1e-6)


def test_the_strengths_at_their_ends():
    images, _ = run(("crop=0", "cutout=0", "erasing=0"))
    np.testing.assert_array_equal(images, IMAGES)
    covered, _ = run(("crop=30", "cutout=100"))
    level = np.uint8([51, 128, 178])
    np.testing.assert_array_equal(covered, np.broadcast_to(level, IMAGES.shape))


def test_an_augmentation_says_what_it_is():
    augmentation = make(("cutmix", "erasing=0.1", "flip", "crop"))
    assert augmentation.options == ("crop=2", "flip", "erasing=0.1", "cutmix=1")
    defaults = ("randaugment=9", "erasing=0.25", "mixup=0.8", "cutmix=1")
    assert make(("mixup", "cutmix", "erasing", "randaugment")).options == defaults
    assert make(("resized_crop",)).options == ("resized_crop=0.08",)
    assert make(augmentation.options) == augmentation
    assert hash(make(augmentation.options)) == hash(augmentation)
    assert augmentation.soft_targets
    assert not make(("crop", "erasing")).soft_targets
    assert augment.names() == (
        *("crop", "resized_crop", "flip", "randaugment", "cutout", "erasing"),
        *("mixup", "cutmix"),
    )


def lacks(name):
    """Returns what a row of the table of operations still lacks, in words."""
    row, found = pipeline.OPERATIONS[name], []
    if row.strength and row.default is None and f"`{name}`" not in DOCUMENTED:
        found.append("a default strength")
    if f"| `{name}` |" not in DOCUMENTED:
        found.append("a line in the table in the docstring of compose")
    streams = [other.stream for n, other in pipeline.OPERATIONS.items() if n != name]
    streams += [0, 1, pipeline._SWITCH]
    if name not in ("crop", "flip") and (row.stream is None or row.stream in streams):
        found.append("a stream of its own")
    option = f"{name}=1" if row.strength else name
    for side in (1, 12):
        batch = IMAGES[:, :side, :side]
        if jax.eval_shape(make((option,)), KEY, batch, LABELS)[0].shape != batch.shape:
            found.append(f"images of the same shape at {side} x {side} pixels")
    return found


@pytest.mark.parametrize("name", augment.names())
def test_rows_are_complete(name):
    missing = lacks(name)
    assert not missing, f"the operation {name} lacks " + "; ".join(missing)


def test_the_completeness_test_says_what_is_missing(monkeypatch):
    row = pipeline.OPERATIONS["cutout"]._replace(apply=lambda k, x, s, a: x[:, 1:])
    monkeypatch.setitem(pipeline.OPERATIONS, "trim", row)
    assert [words.split(" ")[:2] for words in lacks("trim")] == [
        ["a", "default"],
        ["a", "line"],
        ["a", "stream"],
        ["images", "of"],
        ["images", "of"],
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("cutuot=3", "'cutuot' is unknown. Did you mean 'cutout'? Known: 'crop', "),
        ("", "'' is unknown"),
        ("cutout", "'cutout' needs a strength: cutout=NUMBER, side in pixels"),
        ("cutout=2.5", "cutout (side in pixels)=2.5 must be a whole number"),
        ("cutout=-1", "must be a finite number >= 0"),
        ("cutout=", "the strength of 'cutout' is not a number: ''"),
        ("cutout=a lot", "the strength of 'cutout' is not a number: 'a lot'"),
        ("crop=nan", "must be a finite number >= 0"),
        ("flip=0.5", "'flip' takes no strength, and got '0.5'"),
        ("randaugment=11", "randaugment (magnitude, 0 to 10)=11.0 must be a finite "),
        ("resized_crop=0", "must be a finite number > 0"),
        ("erasing=25", "(a fraction: 25 % is 0.25)"),
        ("mixup=0", "mixup (alpha of Beta(alpha, alpha), > 0)=0.0 must be"),
        ("cutmix=inf", "must be a finite number > 0"),
    ],
)
def test_what_cannot_be_is_refused(option, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make((option,))


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="'flip' is given twice"):
        make(("flip", "crop", "flip"))
    with pytest.raises(ValueError, match="'crop' and 'resized_crop' exclude"):
        make(("crop=2", "resized_crop"))


SHARDED = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from zosam_jax.data import augment

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
whole = NamedSharding(mesh, PartitionSpec())
split = NamedSharding(mesh, PartitionSpec("data"))
images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3), np.uint8)
labels = np.arange(16, dtype=np.int32) % 10
batch = jax.random.key(0), images, labels
kw = {"num_classes": 10, "crop_padding": 2, "flip": True}
kw |= {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
for options in ("crop flip cutout=3 cutmix", "resized_crop"):
    augmentation = augment.compose(options.split(), **kw)
    layout = {"in_shardings": (whole, split, split), "out_shardings": split}
    step = jax.jit(augmentation, **layout).lower(*batch).compile()
    assert "all-gather" not in step.as_text(), options
    place = jax.device_put(batch[1:], split)
    ours = step(jax.device_put(batch[0], whole), *place)
    alone = jax.jit(augmentation)(*batch)
    # A mean of two levels may be rounded once or twice.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), ours, alone)
print('"done"')
"""


def test_eight_devices_give_what_one_gives_and_no_batch_is_gathered():
    assert devices.run(SHARDED, 8) == "done"
