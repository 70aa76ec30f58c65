"""What a lottery stops by, puts back and refuses."""

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from tiny_lottery import Recorder, config, leaf_masks, search, spy, state_at
from tiny_lottery import template as make_template

import zosam_jax as zs
from zosam_jax.lottery import tickets
from zosam_jax.train import RunError, TrainConfig, build, choices, optimizers
from zosam_jax.train.objects import Objects


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_moments_start_at_zero_and_their_clocks_anew(name):
    """Rewinding the learning rate: schedules count on, bias corrections do not."""
    config = TrainConfig(optimizer=name, method="ticket", gradient="backprop")
    given = Objects(method=choices.ticket_method(config))
    chosen = choices.choose(config, method=given.method)
    parts_of = build.optimization(config, given, chosen, 100, jnp.zeros(()))
    tx = parts_of(0).optimizer
    params = {"w": jnp.arange(12.0).reshape(3, 4) - 5, "b": jnp.ones(4)}
    fresh = early = tx.init(params)
    # Pruned entries take fresh ones: they must be those of a weight at zero.
    moments = [x for x in jax.tree.leaves(fresh.inner) if x.ndim]
    assert not any(np.any(np.asarray(x)) for x in moments if x.size > 1)
    for _ in range(3):
        _, early = tx.update(
            None,
            early,
            params,
            value_fn=lambda p: (jnp.sum(p["w"] ** 2), jnp.zeros(())),
        )
    state = tickets._with_masks(early, fresh, early.masks, "learning-rate")
    is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    counts = [
        int(x.count)
        for x in jax.tree.leaves(state.inner, is_leaf=is_schedule)
        if is_schedule(x)
    ]
    assert counts == [3]
    others = [
        x
        for x in jax.tree.leaves(state.inner, is_leaf=is_schedule)
        if not is_schedule(x)
    ]
    before = [
        x
        for x in jax.tree.leaves(fresh.inner, is_leaf=is_schedule)
        if not is_schedule(x)
    ]
    tiny_run.assert_same(others, before)
    assert (int(state.step), int(state.gradient.step)) == (3, 3)


def test_an_early_bird_ends_the_first_round_and_trains_on(tmp_path, monkeypatch):
    """Interrupted in the middle, too."""
    early = {"rounds": None, "rewind_epoch": 0, "early_bird": True, "epochs": 6}
    early |= {
        "early_bird_window": 2,
        "early_bird_tolerance": 0.15,
        "learning_rate": 0.01,
    }
    whole = search(tmp_path / "whole", **early)
    content = json.loads((tmp_path / "whole" / "lottery.json").read_text())
    epoch = content["early_bird"]["found_after_epoch"]
    distances = content["early_bird"]["distances"]
    assert 3 <= epoch < 6
    assert len(distances) == epoch - 1
    assert max(distances[-2:]) < 0.15
    earlier = itertools.pairwise(distances[:-1])
    assert all(max(pair) >= 0.15 for pair in earlier)
    first, second = whole.rounds
    assert (first["status"], first["epochs"]) == ("stopped", epoch)
    assert (second["status"], second["epochs"]) == ("finished", 6)
    assert (first["weights_live"], second["weights_live"]) == (104, 42)

    path = tmp_path / "cut"
    cut = search(path, display=Recorder(0, 4 * epoch - 5), **early)
    assert cut.status == "interrupted"
    # As if killed after the last checkpoint, before the summary.
    states = []
    observer = tickets.observer

    def killed(*arguments):
        observe = observer(*arguments)

        def wrapped(epochs, state):
            states.append(epochs)
            return observe(epochs, state)

        return wrapped

    monkeypatch.setattr(tickets, "observer", killed)
    starts = spy(monkeypatch)
    assert search(path, **early).rounds == whole.rounds
    assert states[-1] == epoch
    (path / "round-00" / "summary.json").unlink()
    (path / "round-01" / "summary.json").unlink()
    assert search(path, **early).rounds == whole.rounds
    assert states[-1] == epoch
    final = state_at(path / "round-00" / "checkpoints", 4 * epoch, make_template())
    for m, old, new in zip(
        leaf_masks(starts[1]),
        jax.tree.leaves(final.params),
        jax.tree.leaves(starts[1].params),
        strict=True,
    ):
        np.testing.assert_array_equal(new, np.where(m, old, np.float32(0)))
    assert starts[1].step == 0


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"method": "rigl"}, "method='rigl' has no meaning for lottery tickets"),
        ({"budget": "uniform"}, "budget='uniform' has no meaning"),
        ({"rounds": 0}, "rounds=0"),
        ({"rewind": "weight"}, "Did you mean 'weights'"),
        ({"rewind_epoch": 3}, "rewind_epoch=3 must be less than epochs=3"),
        ({"early_bird": True}, "rounds=2 must be 1"),
        ({"early_bird": True, "rounds": 1}, "rewind_epoch=1 must be 0"),
        (
            {"early_bird": True, "rounds": 1, "rewind_epoch": 0, "sparsity": 0.96},
            "they differ by 0.08 at most. Use a smaller one, as 0.04",
        ),
    ],
)
def test_a_bad_search_is_refused(tmp_path, fields, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        config(tmp_path, **fields)


def test_a_ticket_is_no_method_of_a_single_run(tmp_path):
    with pytest.raises(ValueError, match="zosam lottery"):
        choices.check(TrainConfig(method="ticket"))
    train = dataclasses.replace(config(tmp_path).train, out=None)
    default = dataclasses.replace(config(tmp_path), train=train)
    assert default.folder.name == "quadrants-tiny-lottery-0.6-backprop-s0"


def test_masks_that_cannot_be_read_are_a_sentence(tmp_path):
    like = zs.sparsity.early_bird().init({"w": jnp.ones((3, 2), bool)})
    path = tickets._epoch_file(tmp_path, 2)
    tickets._store(path, like)
    tickets._load(path, like)
    assert len(tickets.changes(tmp_path, 2)) == 1
    other = zs.sparsity.early_bird().init({"w": jnp.ones((2, 2), bool)})
    with pytest.raises(RunError, match=r"epoch-0002\.npz holds masks of another"):
        tickets._load(path, other)
    path.write_bytes(b"noise")
    for read in (
        lambda: tickets._load(path, like),
        lambda: tickets.changes(tmp_path, 2),
        lambda: tickets.changes(tmp_path / "none", 2),
    ):
        with pytest.raises(RunError, match=r"epoch-0002\.npz cannot be read: .*--over"):
            read()
