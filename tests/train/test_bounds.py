"""Bounds of values, above as well as below, and the types of options."""

import numpy as np
import pytest
import tiny_lottery
import tiny_run

from zosam_jax import _check
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import RunError, choices, trial

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 2**31),
        ("update_interval", 9 * 10**25),
        ("epochs", 10**12),
        ("width", 1e6),
        ("milestones", (float("nan"),)),
        ("ema", 1 - 1e-12),
        ("momentum", 1 - 1e-12),
        ("sparsity", 0.9999999999999999),
        ("learning_rate", 1e-300),
        ("learning_rate", 1e300),
        ("final_learning_rate", 1e30),
        ("rho", 1e30),
        ("workers", 10**6),
    ],
)
def test_a_value_has_bounds_above_and_below(field, value):
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})


def test_numbers_are_those_of_float32():
    for value, bounds in (
        (1e39, {}),
        (-1e300, {}),
        (1e-300, {"above": 0}),
        (1 - 1e-9, {"below": 1}),
    ):
        with pytest.raises(ValueError, match="must be a finite number"):
            _check.number("x", value, **bounds)
    below = float(np.nextafter(np.float32(1), np.float32(0)))
    _check.number("x", below, above=0, below=1)
    _check.number("x", 0.1, least=0.1, most=0.1)
    _check.number("x", -3e38)
    with pytest.raises(ValueError, match=r"x=1e-300 .* \(it is 0 in float32\)"):
        _check.number("x", 1e-300, above=0)


def test_whole_numbers_have_32_bits():
    _check.whole("n", 2**31 - 1)
    with pytest.raises(ValueError, match=f">= 1 and <= {2**31 - 1}"):
        _check.whole("n", 2**31)


def test_a_lottery_has_at_most_99_rounds_and_no_idle_flags():
    with pytest.raises(ValueError, match="rounds=100"):
        LotteryConfig(rounds=100)
    for field, value in (("early_bird_window", 3), ("early_bird_tolerance", 0.01)):
        with pytest.raises(ValueError, match=f"{field}={value} has no effect"):
            LotteryConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "option", "part"),
    [
        ("model_options", "width=3", "--width"),
        ("model_options", "num_classes=3", "--dataset"),
        ("gradient_options", "num_directions=9999999999", "32 bits"),
        ("gradient_options", "num_directions=2.5", "must be a whole number"),
        ("gradient_options", "include=True", "must be text or a tuple, each text"),
        ("gradient_options", "guides=3", "must be a tuple, each a number"),
        ("gradient_options", "guides=('a',)", "must be a tuple, each a number"),
        ("gradient_options", "two_sided=1", "must be True or False"),
        ("gradient_options", "when=3", "is a function"),
    ],
)
def test_an_option_has_the_type_of_its_argument(field, option, part):
    with pytest.raises(ValueError, match=field) as error:
        choices.check(TrainConfig(**{field: (option,)}))
    assert part in str(error.value)


def test_a_sparsity_that_leaves_no_weight_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"sparsity=0\.999 keeps 0 of 104 weights"):
        tiny_run.train(tmp_path / "run", method="random", sparsity=0.999)
    with pytest.raises(RunError, match=r"sparsity=0\.999 leaves none of the 104"):
        tiny_lottery.search(tmp_path / "run", sparsity=0.999)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_takes_a_step_and_writes_nothing(tmp_path, monkeypatch):
    class Said(list):
        message = list.append

    monkeypatch.chdir(tmp_path)
    said = Said()
    chosen = tiny_run.config(tmp_path / "run", method="random", gradient="backprop")
    trial.one_step(chosen, tiny_run.prepare(chosen), said)
    assert said[0] == "compiling..."
    assert said[1].startswith("dry run: the first of 12 steps has loss 1.")
    assert list(tmp_path.iterdir()) == []
