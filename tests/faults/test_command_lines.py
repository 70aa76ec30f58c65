"""A share of the hostile command lines; `command_lines.py` runs all of them."""

import shlex

import command_lines
import pytest


def lines(kind, share):
    return [line for line in command_lines.all_lines() if kind in line.kind][::share]


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("without effect", 2),
        ("train --", 12),
        ("lottery", 8),
        ("option", 60),
        ("predict", 3),
        ("evaluate", 2),
        ("analyze", 4),
        ("report", 3),
        ("data prepare", 3),
        ("combination", 20),
    ],
)
def test_hostile_command_lines_end_in_one_clean_line(kind, share):
    endings = command_lines.attack(lines(kind, share), print)
    bad = [e for e in endings if e.ending in ("traceback", "silent acceptance")]
    assert not bad, [(shlex.join(e.line.words), e.detail) for e in bad]
    assert any(e.ending == "clean error" for e in endings)


def test_there_are_enough_of_them():
    found = command_lines.all_lines()
    assert len(found) >= 300
    commands = {line.words[0] for line in found}
    assert commands >= {"train", "lottery", "predict", "evaluate", "report"}
    assert commands >= {"data", "presets"}
    flags = {word for line in found for word in line.words if word.startswith("--")}
    assert len(flags) >= 40
