"""How the leaves of a state are cut; `test_several_processes.py` trains with them."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import sharding

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((64, 64), P("fsdp")),
        # The longest axis that four devices divide.
        ((1001, 8, 16), P(None, None, "fsdp")),
        ((2, 5, 128, 64), P(None, None, "fsdp")),
        ((1001, 33), P()),
        ((64, 63), P()),
        ((), P()),
    ],
)
def test_a_leaf_is_cut_along_its_longest_axis(shape, spec):
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    shared, whole = (
        sharding.of_state(AbstractMesh(sizes, sharding.AXES), leaf).spec
        for sizes in ((2, 4), (8, 1))
    )
    assert (shared, whole) == (spec, P())


def test_what_a_device_holds_is_told():
    state = [np.zeros((64, 128), np.float32), np.zeros(7, np.float32)]
    text = sharding.shares(AbstractMesh((2, 4), sharding.AXES), state)
    assert text == (
        "4 devices share a copy of the state: each holds 0.007839 of 0.03128 MiB"
    )
    assert sharding.shares(AbstractMesh((8, 1), sharding.AXES), state) is None


def test_devices_that_share_a_state_are_counted():
    devices = len(jax.devices())
    assert sharding.mesh(-1, of_all=True).shape == {"data": 1, "fsdp": devices}
    with pytest.raises(ValueError, match=f"fsdp=17 must divide .* devices, {devices}"):
        sharding.mesh(17, of_all=True)
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"fsdp={wrong} must be"):
            TrainConfig(fsdp=wrong)
