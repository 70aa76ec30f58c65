"""Fields without effect: refused from Python as on the command line."""

import pytest

import zosam_jax as zs
from zosam_jax.cli import main as cli
from zosam_jax.evaluate import evaluate
from zosam_jax.lottery import LotteryConfig, run_lottery
from zosam_jax.train import RunError, TrainConfig, effects, loop, run, try_out
from zosam_jax.train.objects import Objects

IDLE = [
    ({"optimizer": "lion", "momentum": 0.5}, "optimizer sgd or rmsprop, and gradient"),
    ({"optimizer": "adamw", "nesterov": True}, "with a momentum above 0"),
    ({"milestones": (0.2, 0.4)}, "it is for schedule step"),
    ({"schedule": "step", "final_learning_rate": 1e-3}, "it is for schedule cosine"),
    ({"weight_decay": 0.0, "decay": "kernels"}, "a weight decay above 0"),
    ({"gradient": "backprop", "rho": 0.1}, "it is for sharpness-aware gradients"),
    ({"gradient": "backprop", "aux_from": "ascent"}, "gradients of several passes"),
    ({"gradient": "sam", "probe_norm": "running"}, "a probe fraction below 1"),
    ({"method": "dense", "sparsity": 0.5}, "has no effect with method='dense'"),
    ({"method": "dense", "dense": ("head/*",)}, "has no effect with method='dense'"),
    ({"method": "snip", "drop_fraction": 0.1}, "has no effect with method='snip'"),
    ({"score_images": 10}, "it is for methods snip and grasp"),
    ({"data_dir": "data"}, "it is for data sets of TFDS"),
]


@pytest.mark.quick
@pytest.mark.parametrize(("fields", "part"), IDLE)
def test_a_field_without_effect_is_refused_from_python(fields, part, tmp_path):
    config = TrainConfig(out=str(tmp_path / "run"), **fields)
    for call in (run, try_out):
        with pytest.raises(RunError) as error:
            call(config)
        assert part in str(error.value)
        assert next(reversed(fields)) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_rounds_of_lottery_tickets_use_sparsity_and_dense_and_no_other_idle_field(
    tmp_path, capsys
):
    train = TrainConfig(method="dense", sparsity=0.5, dense=("head/*",), out="out")
    effects.check(TrainConfig(**(train.record() | {"method": "ticket"})))
    idle = TrainConfig(
        method="dense", optimizer="lion", momentum=0.5, out=str(tmp_path / "search")
    )
    with pytest.raises(RunError, match=r"momentum=0\.5 has no effect here"):
        run_lottery(LotteryConfig(train=idle))
    words = ["lottery", "--print-config", "--dense", "head/*", "--sparsity", "0.5"]
    assert cli.main(words) == 0
    assert '"head/*"' in capsys.readouterr().out


def test_fields_of_what_an_object_replaces_are_not_looked_at(tmp_path):
    config = TrainConfig(optimizer="lion", momentum=0.5, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="has no effect"):
        effects.check(config, ("gradient",))
    effects.check(config, ("optimizer",))
    backprop = TrainConfig(gradient="backprop", aux_from="ascent", out=config.out)
    loop.check_effects(backprop, Objects(gradient=zs.sam(0.1)))


def test_a_run_that_is_there_keeps_its_fields(tmp_path):
    config = TrainConfig(optimizer="lion", momentum=0.5, out=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    loop.check_effects(config, Objects())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"published_dir": "."}, "published_dir='.' has no effect here: it is for"),
        ({"source": "published", "frost_dir": "."}, "source generated and corruption"),
        ({"source": "published", "seed": 3}, "seed=3 has no effect here"),
        ({"corruptions": ("fog",), "frost_dir": "."}, "frost_dir='.' has no effect"),
        ({"corruptions": "fog"}, "corruptions='fog' must be a list"),
        ({"severities": 3}, "severities=3 must be a list"),
    ],
)
def test_options_of_an_evaluation_without_effect_are_refused(options, part, tmp_path):
    """Before the run is read."""
    with pytest.raises(RunError) as error:
        evaluate(tmp_path / "none", **options)
    assert part in str(error.value)
