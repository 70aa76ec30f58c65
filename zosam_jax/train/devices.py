"""The devices of this machine, and processes that see one of them."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zosam_jax.runs.errors import RunError

ALL = "all"
"""The word that stands for all devices of the machine."""

# The share of a GPU's memory that JAX reserves for a process by default.
_RESERVED = 0.75
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")

# A TPU chip of two cores is two devices, in one place.
_QUERY = """
import json, jax
def place(d):
    return str(d.coords) if d.platform == "tpu" else d.id
found = {place(d): [d.platform, d.device_kind] for d in jax.local_devices()}
print(json.dumps(list(found.values())))
"""


class Device(NamedTuple):
    """A GPU, a TPU chip or, for tests, a CPU device that XLA's flags make.

    Attributes:
      platform: "gpu", "tpu" or "cpu".
      number: Its number on this machine, among those that this process sees.
      kind: Its product name.
    """

    platform: str
    number: int
    kind: str

    @property
    def name(self) -> str:
        """Platform and number, as "gpu:0"."""
        return f"{self.platform}:{self.number}"


def found() -> list[Device]:
    """Returns the devices that JAX finds on this machine.

    A process of its own looks, since one that looks reserves memory on all of them.

    Raises:
      RunError: JAX finds none.
    """
    result = subprocess.run(
        [sys.executable, "-c", _QUERY], capture_output=True, text=True, check=False
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RunError(f"devices: JAX finds none on this machine: {last}")
    rows = json.loads(result.stdout.splitlines()[-1])
    return [Device(platform, i, kind) for i, (platform, kind) in enumerate(rows)]


def chosen(words: Sequence[str], known: Sequence[Device]) -> list[Device]:
    """Returns the devices that words name.

    >>> chosen(["1"], [Device("gpu", 0, "H200"), Device("gpu", 1, "H200")])[0].name
    'gpu:1'

    Args:
      words: Numbers, or "all".
      known: All devices of the machine.

    Raises:
      RunError: There is no such device, or one is named twice.
    """
    if list(words) == [ALL]:
        return list(known)
    by_number = {str(device.number): device for device in known}
    listed = ", ".join(f"{device.name} {device.kind}" for device in known)
    for word in words:
        if word not in by_number:
            raise RunError(
                f"devices={word!r} is no device of this machine. It has: {listed}. Say "
                f"their numbers, or {ALL}."
            )
    if len(set(words)) < len(words):
        raise RunError(
            f"devices={' '.join(words)} names a device twice. For several runs on "
            "each, say a larger --jobs."
        )
    return [by_number[word] for word in words]


def shared(devices: Sequence[Device], jobs: int) -> list[Device]:
    """Returns the device of each of several processes at a time, dealt out in turn.

    Args:
      devices: The devices.
      jobs: Number of processes.

    Raises:
      RunError: A device would have none, or a TPU chip several.
    """
    if jobs < len(devices):
        raise RunError(
            f"jobs={jobs} leaves {len(devices) - jobs} of the {len(devices)} devices "
            "without a run. Say a larger number, or name fewer --devices."
        )
    if jobs > len(devices) and devices[0].platform == "tpu":
        raise RunError(
            f"jobs={jobs}: a TPU chip takes one process, and --devices names "
            f"{len(devices)}. Leave it out; --together trains several runs on a chip."
        )
    return [devices[i % len(devices)] for i in range(jobs)]


def environment(
    device: Device, processes: int, outer: Mapping[str, str]
) -> dict[str, str]:
    """Returns the variables by which a process sees one device alone.

    Several processes on a GPU reserve equal parts of what JAX would reserve for one,
    unless `outer` says the part.

    >>> environment(Device("gpu", 1, "H200"), 3, {"CUDA_VISIBLE_DEVICES": "4,6"})
    {'CUDA_VISIBLE_DEVICES': '6', 'XLA_CLIENT_MEM_FRACTION': '0.25'}

    Args:
      device: The device.
      processes: Number of processes on it.
      outer: The environment of this process, which may see some devices only.
    """
    if device.platform == "cpu":
        return {"JAX_NUM_CPU_DEVICES": "1"}
    if device.platform == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": _visible("TPU_VISIBLE_CHIPS", device, outer),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    # AMD's runtime reads this variable too.
    name = "CUDA_VISIBLE_DEVICES"
    own = {name: _visible(name, device, outer)}
    if processes > 1 and not any(fraction in outer for fraction in _FRACTIONS):
        own[_FRACTIONS[0]] = f"{_RESERVED / processes:.3g}"
    return own


def _visible(name: str, device: Device, outer: Mapping[str, str]) -> str:
    """Returns how a variable names a device: by the word that it has for it now."""
    words = outer.get(name, "").split(",")
    return words[device.number] if outer.get(name) else str(device.number)
