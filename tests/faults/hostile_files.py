"""Opens hostile files with the readers of data sets, with bounds on time and memory.

    python tests/faults/hostile_files.py --out benchmarks/results/hostile-files.json

Images of every mode and orientation, damaged and cut ones, decompression bombs, other
formats behind the suffix of an image, FIFOs, devices and links, archives that lead out
of their folder, damaged folders of TFDS, files of published corruptions, and exported
arrays. A case says what is right: an error, or the pixels computed by hand. It ends in
one of

- clean error: a `DatasetError` of one sentence or two that names the place;
- survival: the right pixels;
- silent acceptance: other pixels, or any where an error is right, or files left behind;
- traceback: any other exception, more than a gigabyte, or more than 20 seconds.

`--quick` leaves out what takes longer than a second.
"""

# ruff: noqa: T201
import argparse
import itertools
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2])]

import attacks  # noqa: E402
import hostile_arrays  # noqa: E402
import hostile_folders  # noqa: E402
import hostile_images  # noqa: E402
from attacks import FAULTS  # noqa: E402
from hostile_images import REFUSED, Case  # noqa: E402

from zosam_jax import data  # noqa: E402
from zosam_jax.data import tfds_reader  # noqa: E402

SECONDS = 20
BYTES = 1 << 30


class Reading(NamedTuple):
    """How a case ended.

    Attributes:
      case: The case.
      ending: One of `attacks.ENDINGS`.
      detail: The message, the difference or the traceback.
      seconds: Time that it took.
      megabytes: Memory that it took.
    """

    case: Case
    ending: str
    detail: str
    seconds: float
    megabytes: int


def run(case: Case, scratch: Path) -> Reading:
    """Returns how a case ends, in a process of its own.

    Args:
      case: The case.
      scratch: An empty folder.
    """
    case.make(scratch)
    ours, theirs = multiprocessing.Pipe(duplex=False)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads: the child starts with none
        child = os.fork()
    if not child:
        ours.close()
        _child(case, scratch, theirs)
    theirs.close()
    ending, detail, megabytes = "traceback", f"no answer within {SECONDS} s", 0
    if ours.poll(SECONDS):
        try:
            ending, detail, megabytes = ours.recv()
        except EOFError:
            detail = "the process ended"
    else:
        os.kill(child, 9)
    os.waitpid(child, 0)
    detail = detail.replace(str(scratch), "FOLDER")
    return Reading(case, ending, detail, time.perf_counter() - started, megabytes)


def _child(case: Case, scratch: Path, pipe: Any) -> None:
    """Reads the case, sends the answer and ends the process."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # Decoders in C write to it.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * BYTES,) * 2)
    ending, detail = _ending(case, scratch)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if more > BYTES >> 10:
        ending, detail = "traceback", f"{more >> 10} MiB; {detail}"
    pipe.send((ending, detail, more >> 10))
    pipe.close()
    os._exit(0)


def _ending(case: Case, scratch: Path) -> tuple[str, str]:
    try:
        found = case.read(scratch)
    except data.DatasetError as error:
        return _judged(case, scratch, str(error))
    except ValueError as error:
        if case.group == "names" and str(error).startswith("dataset="):
            return _judged(case, scratch, str(error))
        return "traceback", traceback.format_exc()
    except BaseException:
        return "traceback", traceback.format_exc()
    if case.wanted is REFUSED:
        return "silent acceptance", f"accepted: {found!r:.200}"
    if found != case.wanted:
        return "silent acceptance", f"{found!r:.200}, not {case.wanted!r:.200}"
    return "survival", ""


def _judged(case: Case, scratch: Path, text: str) -> tuple[str, str]:
    """Returns whether a message is a clean one, and the message."""
    short = re.sub(r"\S{200,}", "LONG", text)
    is_sentence = len(short) < 500 and "\n" not in text and " at 0x" not in text
    names_place = str(scratch) in text or case.group == "names" or "mine" in text
    return ("clean error" if is_sentence and names_place else "traceback"), text


def count(readings: list[Reading]) -> dict[str, int]:
    """Returns the number of readings with each ending."""
    return attacks.count(reading.ending for reading in readings)


def main() -> int:
    """Reads all cases, prints the counts and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the results")
    parser.add_argument("--only", default="", help="a part of `group name`")
    parser.add_argument("--every", type=int, default=1, help="read each n-th case only")
    parser.add_argument("--quick", action="store_true", help="without slow cases")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    tfds_reader.is_known("nothing")  # Loads the table of TFDS once, for all processes.
    started = time.perf_counter()
    every = itertools.chain(
        hostile_images.cases(), hostile_folders.cases(), hostile_arrays.cases()
    )
    readings: list[Reading] = []
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(every):
            if options.only not in f"{case.group} {case.name}":
                continue
            if (case.slow and options.quick) or number % options.every:
                continue
            scratch = Path(place).resolve() / str(number)
            scratch.mkdir()
            reading = run(case, scratch)
            readings.append(reading)
            if reading.ending in FAULTS:
                print(reading.ending, case.group, case.name, sep=" | ")
                print(reading.detail[-1500:])
    hostile_folders.clean()
    seconds = time.perf_counter() - started
    groups = {
        group: [r for r in readings if r.case.group == group]
        for group in dict.fromkeys(r.case.group for r in readings)
    }
    print(f"{len(readings)} files in {seconds:.0f} s")
    counts = {name: count(row) for name, row in groups.items()}
    attacks.show({**counts, "all": count(readings)})
    if options.out:
        slowest = max(readings, key=lambda r: r.seconds)
        largest = max(readings, key=lambda r: r.megabytes)
        examples = {
            name: [
                {"file": r.case.name, "ending": r.ending, "message": r.detail}
                for r in row[:: max(1, len(row) // 4)]
            ]
            for name, row in groups.items()
        }
        attacks.write(
            options.out,
            {
                "files": len(readings),
                "seconds": round(seconds),
                "slowest": {slowest.case.name: round(slowest.seconds, 1)},
                "most_mebibytes": {largest.case.name: largest.megabytes},
                "all": count(readings),
                "by_group": counts,
                "examples": examples,
            },
        )
    return int(any(r.ending in FAULTS for r in readings))


if __name__ == "__main__":
    sys.exit(main())
