"""Training that starts from trained weights: what is taken over, and what is new."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax import data, models
from zosam_jax.runs import tensor_file
from zosam_jax.runs.errors import RunError
from zosam_jax.train import (
    TrainConfig,
    choices,
    load_run,
    loop,
    model_card,
    optimizers,
    origin,
    run,
    transfer,
)
from zosam_jax.train import step as steps
from zosam_jax.train.objects import Objects

NAMES = Path(__file__).parents[1] / "models" / "torch_names.json"
FIELDS = {"method": "set", "gradient": "backprop", "epochs": 2, "ema": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sparse network of the four quadrants."""
    out = tmp_path_factory.mktemp("source") / "run"
    tiny_run.train(out, **FIELDS)
    return load_run.load(out, model=tiny_run.Net())


def config(out, trained, **fields):
    usual = {**FIELDS, "from_": str(trained.folder), "seed": 1}
    return tiny_run.config(out, **{**usual, **fields})


@pytest.fixture(scope="module")
def programs(trained):
    return tiny_run.prepare(config("nowhere", trained))


def other_classes():
    return dataclasses.replace(tiny_run.dataset(), class_names=("a", "b", "c", "x"))


def first(compiled):
    """The first state of programs, computed without their compilation."""
    experiment = compiled.experiment
    batch = tiny_run.raw(experiment, 0)
    return steps.init(experiment, *batch, compiled.start and compiled.start.arrays)


def test_the_first_state_is_the_source(trained, programs):
    """The averages of its weights, its statistics and its masks."""
    state = first(programs)
    tiny_run.assert_same(state.params, trained.params)
    tiny_run.assert_same(state.model_state, trained.model_state)
    masks = zs.sparsity.masks(state.opt_state)
    for mine, theirs in zip(*map(jax.tree.leaves, (masks, trained.masks)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    said = programs.start.said
    assert "moving average" in said
    assert "masks kept, at sparsity 0.5" in said
    assert "8 arrays" in said


def test_drawn_masks_are_those_of_the_seed(trained):
    drawn = tiny_run.prepare(config("nowhere", trained, from_masks="drawn"))
    plain = tiny_run.prepare(config("nowhere", trained, from_=None))
    found, wanted = first(drawn), first(plain)
    masks = zs.sparsity.masks(found.opt_state)
    for mine, theirs in zip(
        *map(jax.tree.leaves, (masks, zs.sparsity.masks(wanted.opt_state))), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    live = zs.sparsity.apply_masks(trained.params, masks)
    tiny_run.assert_same(jax.tree.map(np.asarray, found.params), live)


def test_other_classes_get_a_new_head_of_the_seed(trained):
    given = {"data": other_classes()}
    chosen = config("nowhere", trained)
    made = tiny_run.prepare(chosen, **given)
    plain = tiny_run.prepare(dataclasses.replace(chosen, from_=None), **given)
    found, fresh = first(made), first(plain)
    tiny_run.assert_same(found.params["head"], fresh.params["head"])
    tiny_run.assert_same(
        jax.tree.map(np.asarray, found.params["conv"]), trained.params["conv"]
    )
    masks = zs.sparsity.masks(found.opt_state)
    own = zs.sparsity.masks(fresh.opt_state)
    tiny_run.assert_same(masks["head"], own["head"])
    np.testing.assert_array_equal(
        masks["conv"]["kernel"], trained.masks["conv"]["kernel"]
    )
    assert "new: head/bias [4] -> [4], head/kernel [8, 4]" in made.start.said


def test_a_run_resumes_without_its_source(trained, programs, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trained.folder, source)
    objects = {"dataset": tiny_run.dataset(), "model": tiny_run.Net()}

    def go(name, display=None, path=source):
        chosen = config(tmp_path / name, trained, from_=str(path))
        shared = programs.again()
        return run(chosen, display=display, compiled=shared, **objects)

    go("whole")
    assert go("cut", tiny_run.Recorder(3)).status == "interrupted"
    moved = tmp_path / "moved"
    source.rename(moved)
    chosen = config(tmp_path / "cut", trained, from_=str(source))
    assert loop.prepare(chosen, Objects(**objects)).start is None
    # Where the source lies now is not asked by its path, but by its weights.
    assert go("cut", path=moved).status == "finished"
    a, b = (load_run.load(tmp_path / n, model=tiny_run.Net()) for n in ("whole", "cut"))
    tiny_run.assert_same(a.variables, b.variables)
    stored = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert stored["from"]["path"] == str(moved)
    assert stored["from"]["masks"] == "masks kept, at sparsity 0.5"


def test_a_run_does_not_go_on_from_other_weights(trained, tmp_path, programs):
    folder = tmp_path / "run"
    objects = {"dataset": tiny_run.dataset(), "model": tiny_run.Net()}
    chosen = config(folder, trained)
    run(chosen, compiled=programs.again(), display=tiny_run.Recorder(2), **objects)
    same = origin.of_memory(trained)
    moved = {path: np.flip(mask) for path, mask in same.masks.items()}
    for other in (
        origin.of_memory(jax.tree.map(lambda x: x + 1, trained.variables)),
        same._replace(masks=moved),
    ):
        found = origin.start(chosen, other, programs.experiment)
        with pytest.raises(RunError, match=r"began with other weights"):
            origin.kept(chosen, found)
    origin.kept(chosen, origin.start(chosen, same, programs.experiment))


def test_weights_that_were_given_are_needed_until_the_first_checkpoint(
    trained, tmp_path
):
    chosen = config(tmp_path, trained, from_=None)
    assert not origin.is_needed(chosen, None)
    assert origin.is_needed(chosen, trained.variables)
    record = {"path": None, "weights_crc32": 1}
    stored = {"config": chosen.record(), "from": record}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match="Give them again"):
        origin.is_needed(chosen, None)
    both = config(tmp_path, trained)
    with pytest.raises(RunError, match="Say one of them"):
        origin.is_needed(both, trained.variables)


@pytest.mark.parametrize("kind", ["network", "variables", "params"])
def test_weights_may_be_given_in_python(trained, programs, kind):
    weights = {
        "network": trained,
        "variables": trained.variables,
        "params": trained.params,
    }[kind]
    chosen = config("nowhere", trained, from_=None)
    begun = origin.start(chosen, origin.of_memory(weights), programs.experiment)
    tiny_run.assert_same(begun.arrays.params, trained.params)
    assert (begun.arrays.masks is not None) == (kind == "network")
    is_complete = not any(map(transfer._is_new, jax.tree.leaves(begun.arrays)))
    assert is_complete
    stats = begun.arrays.model_state["batch_stats"]["norm"]
    assert transfer._is_new(stats["mean"]) == (kind == "params")


def changed(params, **leaves):
    flat = {k: dict(v) for k, v in params.items()}
    for path, x in leaves.items():
        module, name = path.split("_")
        if x is None:
            del flat[module][name]
        else:
            flat.setdefault(module, {})[name] = x
    return flat


@pytest.mark.parametrize(
    ("leaves", "said"),
    [
        ({"conv_kernel": np.ones((5, 5, 1, 8))}, r"'conv/kernel' is \[5, 5, 1, 8\] in"),
        ({"conv_bias": None}, r"lacks the parameter 'conv/bias' \[8\]"),
        ({"more_bias": np.ones(3)}, r"has the parameter 'more/bias', which"),
        ({"conv_bias": np.full(8, np.nan)}, r"not finite, in conv/bias"),
        ({"conv_bias": np.ones(8, int)}, r"params: conv/bias is an array of int"),
    ],
)
def test_what_does_not_fit_is_named(trained, programs, leaves, said):
    chosen = config("nowhere", trained, from_=None)
    weights = {**trained.variables, "params": changed(trained.params, **leaves)}
    with pytest.raises(RunError, match=said):
        origin.start(chosen, origin.of_memory(weights), programs.experiment)


def test_masks_are_kept_only_where_that_can_be(trained, programs):
    chosen = config("nowhere", trained)
    found = origin.of_memory(trained)
    experiment = programs.experiment

    def begin(found, masks, sparsity=0.5, **fields):
        return transfer.begin(
            found, dataclasses.replace(experiment, **fields), masks, sparsity
        )

    with pytest.raises(RunError, match=r"sparsity=0.9: .*Say --sparsity 0.5, or"):
        begin(found, "auto", 0.9)
    units = experiment.method._replace(begin=None)
    with pytest.raises(RunError, match="'set' cannot start from given masks"):
        begin(found, "keep", method=units)
    assert begin(found, "auto", method=units).arrays.masks is None
    assert "no masks" in begin(found, "auto", method=None).said
    dense = origin.of_memory(trained.params)
    with pytest.raises(RunError, match="no weight of the given weights is pruned"):
        begin(dense, "keep")
    with pytest.raises(RunError, match=r"from_masks='keep' has no effect"):
        loop.check_effects(
            dataclasses.replace(chosen, from_=None, from_masks="keep"), Objects()
        )


METHODS = {
    "static": zs.sparsity.static(0.5),
    "magnitude": zs.sparsity.static(0.5, "magnitude"),
    "rigl": zs.sparsity.rigl(0.5, 100, interval=10),
    "mest": zs.sparsity.mest(0.5, 100, interval=10),
    "dsr": zs.sparsity.dsr(0.5, 100, interval=10),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_from_masks(name):
    params = {"a": np.ones((4, 6), np.float32), "b": np.ones(3, np.float32)}
    mask = np.arange(24).reshape(4, 6) % 5 == 0
    method = zs.sparsity.start_from(METHODS[name], {"a": mask, "b": True})
    topology = method.init(params)
    np.testing.assert_array_equal(topology.masks["a"], mask)
    if method.change is not None:
        grads = {"a": np.arange(24.0).reshape(4, 6), "b": np.ones(3)}
        after = method.change(topology, params, grads, np.int32(10))
        assert after.masks["a"].sum() == mask.sum()
        assert topology.memory.target == mask.sum()
    full = zs.sparsity.start_from(METHODS[name], {"a": True, "b": True})
    assert full.init(params).masks["a"].all()


def test_methods_of_a_structure_choose_their_own_masks():
    make = zs.sparsity
    for method in (
        make.gmp(0.5, 1000),
        make.nm(2, 4, 1000),
        make.ste(0.5),
        make.static(0.5, "snip", value_fn=lambda p: p["a"].sum()),
        make.static(pattern=(2, 4)),
    ):
        with pytest.raises(ValueError, match="chooses its first masks itself"):
            make.start_from(method, {"a": True})
    wrong = make.start_from(METHODS["rigl"], {"a": np.ones((2, 2), bool)})
    with pytest.raises(ValueError, match="a has shape"):
        wrong.init({"a": np.ones((4, 6))})


def keys(t):
    """The cubic filter of Keys with a = -1/2."""
    t = abs(t)
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, inner, np.where(t < 2, outer, 0))


def cubic(old, new):
    """The matrix that resizes `old` values to `new`, with antialiasing."""
    scale = max(old / new, 1)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = keys((np.arange(old)[None] - at[:, None]) / scale)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (8, 5), (3, 3)])
def test_positions_are_resized_by_the_cubic_filter_of_keys(old, new):
    x = np.random.default_rng(0).normal(size=(2 + old * old, 3)).astype(np.float32)
    found = transfer.resized_positions(x, 2 + new * new, 2)
    np.testing.assert_array_equal(found[:2], x[:2])
    grid, matrix = x[2:].reshape(old, old, 3), cubic(old, new)
    wanted = np.einsum("ai,bj,ijd->abd", matrix, matrix, grid).reshape(-1, 3)
    np.testing.assert_allclose(found[2:], wanted, atol=2e-6)


def shapes(name, size, classes, **options):
    model = models.create(name, num_classes=classes, image_size=size, **options)
    key = jax.random.key(0)
    return jax.eval_shape(lambda: models.initialize(model, key, (size, size, 3)))


def test_a_network_of_classes_becomes_one_of_pixels(programs):
    """All but the heads is taken over."""
    classes = shapes("resnet20", 32, 10, width=0.25)
    pixels = shapes("resnet20", 32, 4, width=0.25, segmentation=True)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), classes)
    names = list("0123456789")
    found = transfer.source("the source", *ones, class_names=names)
    of_classes = dataclasses.replace(
        programs.experiment, initialize=lambda _: pixels, method=None
    )
    facts = dataclasses.replace(of_classes.facts, task="segmentation")
    experiment = dataclasses.replace(of_classes, facts=facts)
    begun = transfer.begin(found, experiment, "auto", 0.0)
    new = {path.partition("/")[0] for path in begun.record["new"]}
    assert new == {"head", "stage1_head", "stage2_head"}
    assert begun.record["taken"] == len(jax.tree.leaves(classes)) - 2
    with pytest.raises(RunError, match="lacks the parameter 'stage1_head/kernel'"):
        transfer.begin(found, of_classes, "auto", 0.0)


def test_positions_of_deit_grow_with_the_images(programs):
    """Tokens stay, and the head of other classes is new."""
    options = {"depth": 1, "width": 0.25, "patch": 8}
    small, large = (
        shapes("deit-tiny", size, classes, **options)
        for size, classes in ((32, 10), (48, 4))
    )
    drawn = jax.tree.map(
        lambda x: np.random.default_rng(0).normal(size=x.shape).astype(np.float32),
        small[0],
    )
    found = transfer.source("the source", drawn, {}, class_names=list("0123456789"))
    experiment = dataclasses.replace(
        programs.experiment, initialize=lambda _: large, method=None
    )
    begun = transfer.begin(found, experiment, "auto", 0.0)
    position = begun.arrays.params["position_embedding"]
    assert position.shape == (37, 48)
    np.testing.assert_array_equal(position[0], drawn["position_embedding"][0])
    assert begun.record["resized"] == ["position_embedding [17, 48] -> [37, 48]"]
    assert begun.record["new"] == [
        "head/bias [10] -> [4]",
        "head/kernel [48, 10] -> [48, 4]",
    ]


def test_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainConfig(from_="a").from_ == str(tmp_path / "a")
    with pytest.raises(ValueError, match="folder of this very run"):
        TrainConfig(from_="a", out="a")


def test_a_file_serves_as_its_run(trained, tmp_path):
    file = trained.save(tmp_path / "net.safetensors")
    made = tiny_run.prepare(config("nowhere", trained, from_=str(file)))
    tiny_run.assert_same(made.start.arrays.params, trained.params)
    assert made.start.said.startswith(f"starts from {file} (step ")


FROZEN = ("conv/*", "norm/bias")


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "rigl", "gradient": "zosam", "optimizer": "adamw", "ema": 0.9},
        {"method": "dense", "gradient": "wsam", "gradient_options": ("decouple=True",)},
        {"method": "set", "gradient": "zeroth_order", "clip_norm": 0.1},
    ],
)
def test_frozen_leaves_stay_bit_for_bit(trained, fields):
    """And are neither perturbed nor pruned; the others move."""
    chosen = config("nowhere", trained, epochs=1, weight_decay=0.1, from_=None)
    chosen = dataclasses.replace(
        chosen, **{"ema": 0.0, **fields}, freeze=FROZEN, update_interval=None
    )
    experiment = tiny_run.prepare(chosen).experiment
    before = state = first(tiny_run.prepare(chosen))
    advance = tiny_run.advance(experiment)
    for _ in range(3):
        state = advance(state)
    frozen = {"conv/kernel", "conv/bias", "norm/bias"}
    averaged = state.average[0] if chosen.ema else state.params
    for path, a, b, c in zip(
        zs.tree.paths(state.params),
        *map(jax.tree.leaves, (before.params, state.params, averaged)),
        strict=True,
    ):
        assert np.array_equal(a, b) == (path in frozen), path
        assert np.array_equal(a, c) == (path in frozen), path
    assert f"exclude={FROZEN}" in repr(experiment.gradient)
    if chosen.method != "dense":
        masks = zs.sparsity.masks(state.opt_state)
        assert np.ndim(masks["conv"]["kernel"]) == 0
        assert np.ndim(masks["head"]["kernel"]) == 2


def test_a_given_gradient_leaves_frozen_leaves_out(trained):
    chosen = config("nowhere", trained, from_=None, freeze=FROZEN)
    mine = zs.sam(0.1, exclude="norm/scale")
    experiment = tiny_run.prepare(chosen, gradient=mine).experiment
    assert experiment.gradient.option("exclude") == ("norm/scale", *FROZEN)


def test_an_exported_file_names_no_folder_of_its_source(trained, tmp_path):
    chosen = config(tmp_path / "run", trained)
    about = model_card.about(chosen, trained.facts, 3, None)
    assert "from_" not in about.record()["config"]
    path = tmp_path / "net.safetensors"
    model_card.write(path, about, trained.params, trained.masks, "")
    card = path.with_name("net.safetensors.md").read_text()
    assert "- Started from: run\n" in card


@pytest.mark.parametrize(
    ("fields", "given", "said"),
    [
        ({"freeze": ("stem/*",)}, {}, "freeze='stem/.' matches no leaf"),
        ({"freeze": ("*",)}, {}, "leaves nothing to train"),
        ({"layer_decay": 0.5}, {}, "layer_decay=0.5: the model has no blocks"),
        ({"freeze": ("conv/*",), "gradient": "sampa"}, {}, "looks one step ahead"),
        (
            {"freeze": ("head/*",)},
            {"method": zs.sparsity.rigl(0.5, 8, interval=2)},
            "head/kernel does not move, and method='rigl' would prune it",
        ),
    ],
)
def test_what_cannot_be_frozen_is_named(trained, fields, given, said):
    chosen = config("nowhere", trained, from_=None, **fields)
    if given:
        chosen = dataclasses.replace(chosen, update_interval=None)
    with pytest.raises(RunError, match=said):
        tiny_run.prepare(chosen, **given)


def test_rounds_of_a_lottery_keep_frozen_leaves_dense():
    method = choices.ticket_method(TrainConfig(model="tiny", freeze=("conv/*",)))
    params = {"conv": {"w": np.ones((2, 2))}, "head": {"w": np.ones((2, 2))}}
    masks = method.init(params).masks
    assert [m.ndim for m in jax.tree.leaves(masks)] == [0, 2]


def test_layer_decay_refuses_optimizers_that_keep_weights_of_their_own():
    params = {"block0": {"kernel": np.ones((2, 2))}, "head": {"kernel": np.ones(2)}}
    rule = optax.chain(optax.clip(1.0), optax.contrib.schedule_free_sgd(0.1))
    with pytest.raises(ValueError, match=r"layer_decay=0\.5: a schedule-free"):
        optimizers.by_leaf(rule, (), 0.5).init(params)
    optimizers.by_leaf(rule, ("head/*",), 1.0).init(params)


@pytest.mark.parametrize("method", ["units", "chase"])
def test_layers_of_units_cannot_be_frozen(method):
    chosen = TrainConfig(
        model="mlp",
        model_options=("hidden=(8, 8)",),
        method=method,
        gradient="backprop",
        rho=None,
        freeze=("hidden2/*",),
    )
    with pytest.raises(RunError, match="hidden2/kernel does not move, and method="):
        loop.prepare(chosen, Objects())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vit", {"embed": 0, "position_embedding": 0, "block1": 2, "norm": 3}),
        ("deit-tiny", {"class_token": 0, "block0": 1, "head": 3}),
        ("resnet20", {"stem_norm": 0, "stage1_block0": 1, "stage3_block2": 9}),
        ("wrn22-2", {"stem": 0, "stage2_block0": 4, "norm": 10, "head": 10}),
    ],
)
def test_layers_are_counted_by_blocks(name, wanted):
    options = {"depth": 2} if "vit" in name or "deit" in name else {}
    params, _ = shapes(name, 32, 10, **options)
    paths = zs.tree.paths(params)
    tops = [path.split("/")[0] for path in paths]
    found = dict(zip(tops, models.depths(paths), strict=True))
    assert {top: found[top] for top in wanted} == wanted


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "rmsprop"])
def test_layer_decay_is_a_learning_rate_for_each_layer(name):
    """Each layer moves as it would by an optimizer of its own rate."""
    params = {"stem": {"w": np.ones(3)}, "block0": {"w": np.ones(2)}}
    params = {**params, "block1": {"w": np.ones(4)}, "head": {"w": np.ones(2)}}
    chosen = TrainConfig(optimizer=name, weight_decay=0.1, layer_decay=0.5)

    def final(rate, decay):
        rule = optimizers.update_rule(chosen, lambda _: rate, ())
        rule = optimizers.by_leaf(rule, (), decay)
        w, state = params, rule.init(params)
        grads = jax.tree.map(lambda x: np.linspace(-1, 2, x.size), params)
        for _ in range(3):
            updates, state = rule.update(grads, state, w)
            w = optax.apply_updates(w, updates)
        return jax.tree.map(lambda a, b: np.asarray(a - b), w, params)

    found = final(1e-3, 0.5)
    for layer, top in enumerate(("stem", "block0", "block1", "head")):
        own = final(1e-3 * 0.5 ** (3 - layer), 1.0)
        np.testing.assert_allclose(found[top]["w"], own[top]["w"], rtol=2e-3)


def test_weights_of_torchvision_come_from_their_file(programs, tmp_path):
    """Outputs of another number of classes are new; other arrays are transposed."""
    model = models.create("resnet18", num_classes=4, width=1 / 16)
    like = jax.eval_shape(
        lambda: models.initialize(model, jax.random.key(0), (32, 32, 3))
    )
    rng = np.random.default_rng(0)
    recorded = json.loads(NAMES.read_text())["shapes"][
        "resnet18 of torchvision and timm"
    ]
    narrow = {
        name: [n // 16 if n >= 64 and n != 1000 else n for n in shape]
        for name, shape in recorded.items()
    }
    tensors = {k: rng.random(s).astype(np.float32) for k, s in narrow.items()}
    file = tmp_path / "resnet18.safetensors"
    tensor_file.write(file, tensor_file.TensorFile(tensors, {"format": "pt"}))
    found = origin.of_torch(file)
    experiment = dataclasses.replace(
        programs.experiment, initialize=lambda _: like, method=None
    )
    own = tiny_run.config("nowhere")
    begun = origin.start(own, found, experiment)
    assert begun.said.endswith("half for a ViT of timm, has those of the weights")
    mean, std = data.STATISTICS["imagenet"]
    facts = dataclasses.replace(experiment.facts, mean=mean, std=std)
    same = dataclasses.replace(experiment, facts=facts)
    assert "normalization" not in origin.start(own, found, same).said
    assert begun.record["new"] == [
        "head/bias [1000] -> [4]",
        "head/kernel [32, 1000] -> [32, 4]",
    ]
    params, stats = begun.arrays.params, begun.arrays.model_state["batch_stats"]
    kernel = tensors["layer2.0.conv1.weight"]
    np.testing.assert_array_equal(
        params["stage2_block0"]["conv1"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        stats["stage4_block1"]["norm2"]["var"], tensors["layer4.1.bn2.running_var"]
    )
    assert begun.said.startswith(f"starts from {file} (of timm or torchvision); 100 ")


def test_other_files_are_refused_or_left_to_others(trained, tmp_path):
    assert origin.of_torch(tmp_path / "no.safetensors") is None
    assert origin.of_torch(trained.save(tmp_path / "own.safetensors")) is None
    pickled = tmp_path / "net.pth"
    pickled.write_bytes(b"any")
    with pytest.raises(RunError, match=r"pickle of PyTorch.*save_file\(model"):
        origin.of_torch(pickled)
    file = tmp_path / "other.safetensors"
    unknown = {"encoder.weight": np.ones((2, 2), np.float32)}
    tensor_file.write(file, tensor_file.TensorFile(unknown, {}))
    with pytest.raises(RunError, match=r"'encoder.weight' belongs to no model here"):
        origin.of_torch(file)
