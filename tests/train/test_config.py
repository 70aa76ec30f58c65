import dataclasses
import json
import re

import numpy as np
import pytest

from zosam_jax.runs import config
from zosam_jax.train import PRESETS, TrainConfig, choices, learning_rates, preset
from zosam_jax.train.named_method import Needs


@pytest.mark.quick
@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("method", "rigll", "Did you mean 'rigl'"),
        ("optimizer", "adam", "Did you mean 'adamw'"),
        ("schedule", "cos", "Known: 'cosine'"),
        ("gradient", "zo-sam", "Did you mean 'zosam'"),
        ("budget", "erkk", "Did you mean 'erk'"),
        ("rho", -0.1, "rho=-0.1 must be a finite number >= 0"),
        ("rho", float("nan"), "rho=nan"),
        ("aux_from", "probe", "Known: 'ascent', 'descent'"),
        ("probe_fraction", 0.0, "probe_fraction=0.0 must be a finite number > 0"),
        ("probe_norm", "runing", "Did you mean 'running'"),
        ("probe_dtype", "bf16", "Did you mean 'bfloat16'"),
        ("sparsity", 1.0, "sparsity=1.0 must be a finite number >= 0 and < 1"),
        ("batch_size", 2.5, "batch_size=2.5 must be an integer"),
        ("epochs", 0, "epochs=0"),
        ("keep", 0, "keep=0"),
        ("seed", -1, "seed=-1"),
        ("warmup_epochs", 40, "warmup_epochs=40"),
        ("budget", "global", "budget='global' is unknown"),
        ("method_options", ("soft=True",), "rigl has no option 'soft'. Its options: s"),
        ("method_options", ("dropfraction=1",), "drop_fraction (--drop-fraction). Its"),
        ("model_options", ("dept=1",), "resnet20 has no option 'dept'"),
        ("model_options", ("dropout=x",), "resnet20: dropout='x' must be"),
        ("method_options", ("interval=3",), "--update-interval"),
    ],
)
def test_a_bad_value_is_named_with_what_would_work(field, value, part):
    with pytest.raises(ValueError, match=field) as error:
        choices.check(TrainConfig(**{field: value}))
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("method", "fields", "part"),
    [
        ("units", {"budget": "uniform"}, "budget='uniform' has no effect with"),
        ("units", {"dense": ("head/*",)}, "dense=('head/*',) has no effect with"),
        ("nm", {"budget": "erk"}, "budget='erk' has no effect with method='nm'"),
        ("mest", {"drop_fraction": 0.1}, "drop_fraction=0.1 has no effect with"),
        ("itop", {"method_options": ("grow=gradients",)}, "Did you mean 'gradient'"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(method, fields, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        choices.check(TrainConfig(method=method, **fields))


def made(config, total_steps):
    """The sparse method of a configuration."""
    return choices.choose(config).method.build(
        config, Needs(total_steps, (), dict, config.seed)
    )


def test_scores_are_options_by_name():
    c = TrainConfig(method="itop", method_options=("grow=random",))
    assert made(c, 6500).dense_gradient_every is None
    assert bool(made(c, 6500).fires(100))  # 65 changes, not 24.
    # Random growth looks at no gradient of pruned weights.
    c = dataclasses.replace(c, gradient="zeroth_order")
    choices.check(c)
    with pytest.raises(ValueError, match="gradient of pruned weights"):
        choices.check(dataclasses.replace(c, method_options=()))


def test_a_method_may_be_given_what_its_row_has():
    c = TrainConfig(method="srigl", method_options=("last=('logits/kernel',)",))
    params = {"logits": {"kernel": np.zeros((10, 10), np.float32)}}
    assert made(c, 1000).init(params).masks["logits"]["kernel"].sum() == 10


def test_the_sparsity_of_n_of_m_may_be_rounded():
    c = TrainConfig(method="nm", sparsity=0.666667, method_options=("n=1", "m=3"))
    choices.check(c)
    with pytest.raises(ValueError, match=r"Say --sparsity 0\.666667"):
        choices.check(dataclasses.replace(c, sparsity=0.6667))


def test_each_choice_has_its_row_in_a_table():
    assert set(config.SCHEDULES) == set(learning_rates.SCHEDULES)


@pytest.mark.quick
def test_presets():
    assert PRESETS["digits"].config == TrainConfig()
    mest = preset("cifar-resnet32").config
    recipe = (mest.model, mest.width, mest.epochs, mest.batch_size, mest.schedule)
    assert recipe == ("resnet32", 2.0, 160, 64, "cosine")
    assert (mest.learning_rate, mest.momentum, mest.weight_decay) == (0.1, 0.9, 5e-4)
    assert (mest.method, mest.sparsity, mest.gradient) == ("rigl", 0.9, "zosam")
    rigl = preset("imagenet-resnet50").config
    # Whole batches of 4096 in 1,281,167 images. arXiv:1911.11134, appendix; decay and
    # the blocks' start as in the authors' resnet_model.py.
    epoch = 1_281_167 // rigl.batch_size
    rate = learning_rates.schedule(rigl, epoch * rigl.epochs)
    for drop, (last, power) in enumerate([(30, 0), (70, 1), (90, 2)], start=1):
        found = [float(rate(last * epoch + i)) for i in (-1, 0)]
        assert found == pytest.approx([1.6 * 0.1**power, 1.6 * 0.1**drop], rel=1e-5)
    assert float(rate(5 * epoch)) == pytest.approx(1.6)
    assert rigl.decay == "kernels"
    assert rigl.model_options == ("zero_init_residual=True",)
    deit = [preset(f"imagenet-deit-{size}").config for size in ("tiny", "small")]
    assert {c.budget for c in deit} == {"erk_fused"}  # As SViTE's qkv.
    assert all(p.claim and p.cost and p.evidence for p in PRESETS.values())
    for each in PRESETS.values():
        choices.check(each.config)
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        preset("digit")


def test_differences_see_through_json_and_leave_out_housekeeping():
    old = TrainConfig(dense=("stem/*",), out="a")
    new = dataclasses.replace(old, out="b", keep=5, overwrite=True, log_every=1)
    stored = json.loads(json.dumps(dataclasses.asdict(old)))
    assert config.differences(stored, dataclasses.asdict(new)) == {}
    new = dataclasses.replace(old, rho=0.1)
    changed = config.differences(stored, dataclasses.asdict(new))
    assert changed == {"rho": (None, 0.1)}


def test_default_folder_names_what_is_trained():
    assert TrainConfig(seed=3).folder.name == "digits-resnet20-rigl-0.9-zosam-s3"
    dense = TrainConfig(method="dense", gradient="backprop")
    assert dense.folder.name == "digits-resnet20-dense-backprop-s0"


def test_learning_rates():
    c = TrainConfig(learning_rate=1.0, epochs=10, warmup_epochs=2)
    cosine = learning_rates.schedule(c, 100)
    assert float(cosine(0)) == 0
    assert float(cosine(10)) == pytest.approx(0.5)
    assert float(cosine(20)) == pytest.approx(1.0)
    assert float(cosine(60)) == pytest.approx(0.5)
    assert float(cosine(100)) == pytest.approx(0.0, abs=1e-7)
    c = dataclasses.replace(c, schedule="step", warmup_epochs=0)
    step = learning_rates.schedule(c, 100)
    values = [float(step(t)) for t in (0, 49, 50, 74, 75, 99)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    c = dataclasses.replace(c, schedule="constant")
    assert float(learning_rates.schedule(c, 100)(99)) == 1


def test_a_folder_of_data_is_one_folder_of_runs():
    assert TrainConfig(dataset="folder:/a/b/pets").folder.parent.name == "runs"
    assert TrainConfig(dataset="folder:/a/b/pets").folder.name.startswith("folder-pets")
    named = TrainConfig(dataset="imagenette/320px-v2").folder
    assert named.name.startswith("imagenette-320px-v2-resnet20")


def test_what_presets_and_flags_say_together():
    with pytest.raises(ValueError, match=r"warmup_epochs=1 must be less than epochs=1"):
        TrainConfig(warmup_epochs=1, epochs=1)
    with pytest.raises(ValueError, match="--update-interval None"):
        choices.check(TrainConfig(method="synflow", update_interval=25))
    with pytest.raises(ValueError, match="of this very run"):
        TrainConfig(teacher="runs/a", out="runs/../runs/a")
