"""A share of the damaged folders; `damaged_folders.py` reads all of them."""

import collections
import random

import pytest
from attacks import FAULTS
from damaged_folders import (
    READERS,
    SEED,
    Reader,
    Reading,
    make,
    read,
    variants,
)

# How many damages of each record are read here.
SHARE = {
    "config.json": 10,
    "summary.json": 4,
    "metrics.jsonl": 6,
    "evaluation.jsonl": 4,
    "checkpoints": 4,
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(make(tmp_path_factory.mktemp("damaged") / "whole"))


# Orbax reads files on when one of them has failed, and its threads then find no loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", SHARE)
def test_a_damaged_folder_is_a_sentence_or_the_same_run(name, reader, tmp_path):
    every = [v for v in variants(reader.whole) if v.record == name]
    chosen = random.Random(SEED).sample(every, SHARE[name])
    readings = [read(reader, v, e, tmp_path) for v in chosen for e in READERS[name]]
    faults = [r for r in readings if r.ending in FAULTS]
    assert not faults, "\n\n".join(map(told, faults))


def test_the_damages_are_many_and_of_many_kinds(reader):
    every = variants(reader.whole)
    assert len(every) >= 400
    kinds = collections.Counter(v.record for v in every)
    assert set(kinds) == set(SHARE)
    assert min(kinds.values()) >= 40
    assert len({(v.record, v.kind, v.what) for v in every}) == len(every)


def told(reading: Reading) -> str:
    return f"{reading.entry}: {reading.variant[:3]}: {reading.ending}\n{reading.detail}"
