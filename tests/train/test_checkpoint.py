"""Checkpoints on disk, without training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zosam_jax.train import RunError, checkpoint
from zosam_jax.train.checkpoint import Checkpoints


def state_at(step):
    params = {"w": jnp.full((4, 3), step, jnp.float32), "b": jnp.ones(3, jnp.bfloat16)}
    opt_state = optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)
    ).init(params)
    masks = {"w": jnp.arange(12).reshape(4, 3) % 2 == 0, "b": jnp.asarray(True)}
    return checkpoint.snapshot((jnp.int32(step), params, {}, opt_state, masks))


def filled(path, steps=(1, 2, 3), keep=3):
    checkpoints = Checkpoints(path / "checkpoints", keep)
    for step in steps:
        checkpoints.save(step, state_at(step))
    checkpoints.wait()
    return checkpoints


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def flip_a_byte(folder):
    """Flips a bit in the middle of the largest file."""
    path = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_is_saved_is_restored_and_few_are_kept(tmp_path):
    checkpoints = filled(tmp_path, steps=(1, 2, 3), keep=2)
    assert checkpoints.steps() == [2, 3]
    assert_same(checkpoints.restore(state_at(0), pytest.fail), state_at(3))
    checkpoints.close()


def test_none_is_restored_from_an_empty_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    assert checkpoints.restore(state_at(0), pytest.fail) is None
    checkpoints.close()


def test_a_snapshot_outlives_the_donation_of_its_state():
    x = jnp.arange(1000.0)
    kept = checkpoint.snapshot(x)
    jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(x).block_until_ready()
    np.testing.assert_array_equal(kept, np.arange(1000.0))


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, damage):
    filled(tmp_path).close()
    newest = tmp_path / "checkpoints" / "3"
    if damage == "flip":
        flip_a_byte(newest)
    else:
        for path in list((newest / "state").rglob("*")):
            if path.is_file() and damage == "delete":
                path.unlink()
            elif path.is_file():
                path.write_bytes(path.read_bytes()[:-3])
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    warnings = []
    assert_same(checkpoints.restore(state_at(0), warnings.append), state_at(2))
    assert "step 3 is damaged" in warnings[0]
    assert "step 2" in warnings[1]
    assert checkpoints.steps() == [1, 2]
    assert (tmp_path / "damaged" / "3").is_dir()
    checkpoints.save(3, state_at(3))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_a_checkpoint_of_another_layout_is_not_called_damaged(tmp_path):
    filled(tmp_path).close()
    *same, masks = state_at(0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    for name, changed in (
        ("4/w", {**masks, "w": np.ones((9, 3), bool)}),
        ("4/x", {**masks, "x": np.ones(2, bool)}),
        ("4/b", {"w": masks["w"]}),
    ):
        with pytest.raises(
            RunError, match=rf"not damaged.*another version.*\({name}\)"
        ):
            checkpoints.restore((*same, changed), pytest.fail)
    assert checkpoints.steps() == [1, 2, 3]
    assert_same(checkpoints.restore(state_at(0), pytest.fail), state_at(3))
    checkpoints.close()


def test_silently_changed_contents_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "digest", lambda state: 1)
    filled(tmp_path).close()
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    with pytest.raises(RunError, match=r"no checkpoint .* 3, 2, 1.*CRC-32"):
        checkpoints.restore(state_at(0), lambda text: None)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_the_digest_sees_each_bit_and_type():
    state = state_at(1)
    crc = checkpoint.digest(state)
    assert crc == checkpoint.digest(state_at(1))
    state[1]["w"].view(np.uint8)[2, 5] ^= 1
    assert crc != checkpoint.digest(state)
    state[1]["w"].view(np.uint8)[2, 5] ^= 1
    state[4]["w"][0, 0] ^= True
    assert crc != checkpoint.digest(state)
    assert checkpoint.digest(np.zeros(2, np.int32)) != checkpoint.digest(
        np.zeros(2, np.float32)
    )


def test_a_failed_write_says_what_is_left(tmp_path, monkeypatch):
    checkpoints = filled(tmp_path, steps=(1, 2))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(RunError, match="the disk is full") as error:
        checkpoints.save(3, state_at(3))
    assert "The last good checkpoint is that of step 2" in str(error.value)
    monkeypatch.undo()
    assert_same(checkpoints.restore(state_at(0), pytest.fail), state_at(2))
    checkpoints.close()


def test_finite_checks_every_float_type():
    assert checkpoint.is_finite(state_at(1))
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        bad = checkpoint.snapshot([jnp.array([1, jnp.inf], dtype)])
        assert not checkpoint.is_finite(bad)
