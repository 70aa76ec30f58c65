"""`--distributed`: the processes of a run find each other, before a backend starts."""

import dataclasses
import os
import sys
from typing import ClassVar, NoReturn

from zosam_jax import _check
from zosam_jax.runs.errors import RunError

_MANUAL = "--coordinator HOST:PORT --num-processes N --process-id I"


@dataclasses.dataclass(frozen=True)
class Distributed:
    """What the flags of `zosam train` say of the processes.

    Attributes:
      coordinator: Address of process 0 and a free port there, as "HOST:PORT".
      num_processes: Number of processes.
      process_id: Number of this one, from 0.
      process_timeout: Seconds after which a silent process counts as dead.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    process_timeout: int

    # They start at different times.
    START: ClassVar[int] = 3

    def check(self) -> None:
        """Raises `ValueError` if the flags do not fit together."""
        _check.whole("process_timeout", self.process_timeout)
        if self.num_processes is not None:
            _check.whole("num_processes", self.num_processes)
        if self.process_id is not None:
            most = (self.num_processes or 2**31) - 1
            _check.whole("process_id", self.process_id, least=0, most=most)
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(
                    f"coordinator={self.coordinator!r} must be HOST:PORT, as "
                    "10.0.0.2:1234."
                )

    def connect(self) -> None:
        """Connects this process with the others.

        Without flags, JAX asks the cluster: Cloud TPU, GKE, SLURM or Open MPI.

        Raises:
          RunError: There is no cluster, or a flag is missing, or the port is taken. JAX
            itself ends a process that waits in vain.
        """
        import jax

        start, where = self.START * self.process_timeout, self.coordinator
        sys.stderr.write(
            f"connecting with the other processes{f' at {where}' if where else ''}; "
            f"JAX ends this one if they are not there in {start} s, and later if one "
            f"is silent for {self.process_timeout} s\n"
        )
        sys.stderr.flush()
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                initialization_timeout=start,
                heartbeat_timeout_seconds=self.process_timeout,
                shutdown_timeout_seconds=self.process_timeout,
            )
        except ValueError as error:
            # JAX names what neither the flags nor a cluster told.
            raise RunError(
                f"--distributed: JAX found no cluster that tells all ({error}) Cloud "
                f"TPU, GKE, SLURM and Open MPI do. Elsewhere say {_MANUAL}."
            ) from error
        except RuntimeError as error:
            raise RunError(
                f"--distributed: JAX could not start ({error}). If the port is taken, "
                "choose another in --coordinator, the same for all processes."
            ) from error


def is_first() -> bool:
    """Whether this is process 0 of the run, or its only one: it shows and draws."""
    from zosam_jax.train import processes

    return processes.is_first()


def leave(status: int) -> NoReturn:
    """Ends this process without the functions that wait for its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
