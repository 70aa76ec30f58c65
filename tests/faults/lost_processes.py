"""Kills one process of several, lets the others end, and goes on with their run.

    python tests/faults/lost_processes.py --out benchmarks/results/lost-processes.json

Two and four processes with a device each train a run over gloo: every one with the
whole state, or all sharing one copy (`--fsdp -1`). SIGKILL ends process 1 in the second
epoch, or process 0, which keeps the record and leads the others. Then the same commands
go on with the run, which is compared with one that was never disturbed: the same files,
figures and bits. That one is compared with a run of one process that has as many
devices: the same masks and counts, and weights and momenta that differ by rounding
alone. The figures that the last step reports are not compared with it: the norm of
ZO-SAM's estimate divides a difference of two losses by 0.002, and their rounding with
it. Of that estimate a step uses the sign alone. A kill ends in one of

- survival: the others ended within 60 s, with a status of their own, and the run went
  on to the same bits;
- difference: it went on to other bits, or not to its end;
- traceback: a process that was left ended with another status than 75 or SIGABRT's;
- too late: it ended later than after 60 s.
"""

# ruff: noqa: T201
import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

import attacks  # noqa: E402
import numpy as np  # noqa: E402
import several_processes as several  # noqa: E402
from run_differences import differences, read_arrays  # noqa: E402

ENDINGS = ("survival", "clean error", "difference", "traceback", "too late")
VICTIMS = {"killed": 1, "orphaned": 0}
COUNTS, LAYOUTS = (2, 4), (1, -1)
LIMIT = 60.0  # seconds until the others have ended
TRAINED = ("['params']", "['model_state']", "['average']", "['opt_state']['inner']")
ROUNDING = 1e-6  # of what is trained, as in tests/train/test_several_processes.py
SECONDS = 1200  # that a group may take, on a machine with other work
# JAX aborts what waits in a collective; gloo may tell the program first.
STATUSES = (-signal.SIGABRT, 75)


def ends(task: str, folder: Path, processes: int, fsdp: int) -> dict[str, Any]:
    """Returns how the processes of a run end of which one is killed.

    Args:
      task: One of `VICTIMS`.
      folder: Where to train.
      processes: Number of processes.
      fsdp: Devices that share a copy of the state.
    """
    ended = several.group(task, folder, processes, 1, SECONDS, fsdp)
    died = float((folder / f"died {task}").read_text())
    others = [x for i, x in enumerate(ended) if i != VICTIMS[task]]
    named = {int(n) for x in others for n in re.findall(r"task:(\d+)", x.stderr)}
    return {
        "processes": processes,
        "fsdp": fsdp,
        "killed": VICTIMS[task],
        "statuses": [x.status for x in ended],
        "seconds": round(max(x.time for x in others) - died, 1),
        "is_named": VICTIMS[task] in named,
    }


def measure(folder: Path, processes: int, fsdp: int) -> list[dict[str, Any]]:
    """Returns a row for each process that is killed.

    Args:
      folder: An empty folder.
      processes: Number of processes.
      fsdp: Devices that share a copy of the state.
    """
    rows = [ends(task, folder, processes, fsdp) for task in VICTIMS]
    group = several.group("again", folder, processes, 1, SECONDS, fsdp)
    (folder / "alone").mkdir()
    several.group("again", folder / "alone", 1, processes, SECONDS, fsdp)
    largest, others = distance(folder / "whole", folder / "alone" / "whole")
    for row, task in zip(rows, VICTIMS, strict=True):
        row |= {
            "goes_on": [x.found.get(task) for x in group],
            "differences": [
                line
                for line in differences(folder / "whole", folder / task)
                # The command draws, and the function that goes on does not.
                if not line.endswith(": curves.png")
            ],
            "weights_from_one_process": largest,
            "others_from_one_process": others,
        }
        row["ending"] = ending(row)
    return rows


def ending(row: Mapping[str, Any]) -> str:
    """Returns how a kill ended, one of `ENDINGS`.

    Args:
      row: A row of `measure`.
    """
    left = [x for i, x in enumerate(row["statuses"]) if i != row["killed"]]
    if any(status not in STATUSES for status in left):
        return "traceback"
    if row["seconds"] > LIMIT:
        return "too late"
    same = row["weights_from_one_process"] <= ROUNDING
    same &= not row["differences"] and not row["others_from_one_process"]
    same &= row["goes_on"] == ["finished"] * row["processes"]
    return "survival" if same else "difference"


def distance(run: Path, other: Path) -> tuple[float, list[str]]:
    """Returns the largest difference of what is trained, in two runs' last checkpoints.

    Beside it, the paths of arrays of integers and masks that are not the same.

    Args:
      run: Folder of a run.
      other: That of another one with the same arrays.
    """
    last = [
        max((x / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
        for x in (run, other)
    ]
    one, two = map(read_arrays, last)
    trained = [key for key in one if key.startswith(TRAINED)]
    floats = [key for key in trained if one[key].dtype == np.float32]
    others = [key for key, x in one.items() if x.dtype != np.float32]
    # NumPy's maximum of NaN is NaN, which is not within rounding.
    largest = np.max([np.max(np.abs(one[key] - two[key])) for key in floats])
    return float(largest), [x for x in others if not np.array_equal(one[x], two[x])]


def main() -> int:
    """Kills, goes on, prints how it ended and writes the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--processes", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--fsdp", type=int, nargs="+", default=list(LAYOUTS))
    options = parser.parse_args()
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for processes in options.processes:
        for fsdp in options.fsdp:
            with tempfile.TemporaryDirectory() as place:
                rows += measure(Path(place).resolve(), processes, fsdp)
            for row in rows[-len(VICTIMS) :]:
                print(json.dumps(row), flush=True)
    counts = attacks.count([row["ending"] for row in rows], ENDINGS)
    attacks.show({"all": counts})
    seconds = round(time.perf_counter() - started)
    figures = {"kills": len(rows), "seconds": seconds, "all": counts, "rows": rows}
    attacks.write(options.out, figures)
    return int(counts["survival"] != len(rows))


if __name__ == "__main__":
    sys.exit(main())
