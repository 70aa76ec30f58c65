"""Statistics of batch normalization of a trained run, estimated anew."""

import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.cli import main as cli
from zosam_jax.train import RunError, load_run

FIELDS = {"method": "set", "gradient": "backprop", "epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("statistics") / "run"
    tiny_run.train(out, **FIELDS)
    return out


def loaded(trained, **options):
    data = {"dataset": tiny_run.dataset()} if options.get("examples") else {}
    return load_run.load(trained, model=tiny_run.Net(), **data, **options)


def expected(net, batches):
    """The moments of the outputs of the convolution, over the training's batches."""
    inputs = [tiny_run.batch(net.experiment, step).inputs for step in range(batches)]
    found = models.intermediates(net.model, net.variables, np.concatenate(inputs))
    channels = np.asarray(found["conv"], np.float64).reshape(-1, 8)
    return {"mean": channels.mean(0), "var": channels.var(0)}


@pytest.mark.parametrize(("examples", "batches"), [(None, 4), (17, 2), (999, 4)])
def test_the_statistics_are_those_of_the_batches_of_the_training(
    trained, examples, batches
):
    net = loaded(trained, examples=True)
    again = net.reestimate_batch_stats(examples)
    stats = again.model_state["batch_stats"]["norm"]
    for name, wanted in expected(net, batches).items():
        np.testing.assert_allclose(stats[name], wanted, rtol=1e-4, atol=1e-6)
        # The average of one epoch of training is far from them.
        assert np.abs(net.model_state["batch_stats"]["norm"][name] - wanted).max() > 0.1
    tiny_run.assert_same(again.params, net.params)
    assert again.summary == net.summary


def test_what_is_missing_is_told(trained, tmp_path):
    with pytest.raises(RunError, match=r"not loaded\. Say zs\.load\(run, examples"):
        loaded(trained).reestimate_batch_stats()
    with pytest.raises(ValueError, match="examples=0 must be"):
        loaded(trained, examples=True).reestimate_batch_stats(0)


def test_the_command_exports_them(trained, tmp_path, monkeypatch, capsys):
    given = {"model": tiny_run.Net(), "dataset": tiny_run.dataset()}
    load = load_run.load
    monkeypatch.setattr(
        load_run,
        "load",
        lambda run, *, dataset, model=None, **rest: load(run, **given, **rest),
    )
    file = tmp_path / "new.safetensors"
    words = ["export", str(trained), "--out", str(file)]
    assert cli.main([*words, "--reestimate", "32"]) == 0
    found = zs.load(file, **given).model_state["batch_stats"]["norm"]
    wanted = expected(load(trained, examples=True, **given), 2)
    np.testing.assert_allclose(found["var"], wanted["var"], rtol=1e-4)
    for more, said in (
        (["--reestimate", "0"], "--reestimate 0 must be a number of examples"),
        (["--data-dir", "x"], "--data-dir x has no effect without --reestimate"),
    ):
        assert cli.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
