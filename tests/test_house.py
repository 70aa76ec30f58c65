"""The measuring script on a small package whose measurements are known."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks import house

FILES = {
    "__init__.py": '''
        """The facade."""
        from small.low import tree as tree
        from small.rooms import open_door as open_door
        from small import rooms as rooms
    ''',
    "__main__.py": "from small.high import run\nrun()\n",
    "low/__init__.py": "",
    "low/tree.py": '''
        # Copyright of somebody.
        """Trees."""
        from typing import Any

        def leaves(tree: Any, depth, *, key: int | None = None) -> list[Any]:
            """Returns the leaves.

            >>> leaves({}, 0)
            []
            """
            # Depth first, for the order is part of the result.
            return []
    ''',
    "low/check.py": '"""Checks."""\nfrom . import tree\nfrom .tree import leaves\n',
    "rooms/__init__.py": "from small.rooms.doors import open_door as open_door\n",
    "rooms/doors.py": '''
        from typing import TYPE_CHECKING, Any
        from small.low import check
        if TYPE_CHECKING:
            from small.rooms.walls import Wall

        def open_door(door: Any, wall: "Wall", by: dict[str, Any]) -> None:
            """Opens.

            Args:
              door: Which.
              wall: Where.
              by: How.
            """
            def handle(self, x: int) -> None:
                pass
    ''',
    "rooms/walls.py": '''
        class Wall:
            def paint(self, a: int, b: int, c: int) -> None:
                """Paints."""
                from small.rooms import doors
                doors.open_door(a, self, {})
    ''',
    "high.py": """
        import small as s  # TODO: not the facade

        def run() -> None:
            s.rooms.open_door(1, None, {})
    """,
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return tmp_path / "small"


def test_facades_are_seen_through(small):
    graph = house.import_graph(house.read(small))
    assert graph == {
        "small.low.tree": set(),
        "small.low.check": {"small.low.tree"},
        "small.rooms.doors": {"small.low.check"},
        "small.rooms.walls": {"small.rooms.doors"},
        "small.high": {"small.rooms.doors"},
    }


def test_a_facade_of_unknown_use_is_all_that_it_holds(small):
    path = small / "high.py"
    path.write_text("import small as s\nNAMES = [getattr(s, 'x')]\n")
    graph = house.import_graph(house.read(small))
    assert graph["small.high"] == {"small.low.tree", "small.rooms.doors"}


@pytest.mark.quick
def test_measurements_of_the_small_package(small):
    measured = house.measure(small)
    longest = measured.pop("longest_path")
    assert longest in (
        [f"small.{top}", "small.rooms.doors", "small.low.check", "small.low.tree"]
        for top in ("high", "rooms.walls")
    )
    total = measured["lines"]
    assert total == sum(
        len(path.read_text().splitlines()) for path in small.rglob("*.py")
    )
    assert measured == {
        "package_floors": 3,
        "module_floors": 4,
        "floors_within": {"low": 2, "rooms": 2},
        "cycles": [["small.rooms.doors", "small.rooms.walls"]],
        "package_cycles": [],
        "files": 9,
        "lines": total,
        "lines_median": 4,
        "lines_max": 15,
        "longest_file": "small.rooms.doors",
        "docstring_share": round((1 + 1 + 5 + 1 + 7 + 1) / total, 4),
        "comment_share": round(2 / total, 4),
        "functions": 5,
        "function_lines_median": 3,
        "function_lines_p90": 3,
        "function_lines_max": 3,
        "longest_function": "small.low.tree.leaves",
        "functions_over_45_lines": 0,
        "typed_share": 0.9,
        "bare_any_share": 0.2,
        "public_functions": 4,
        "documented_share": 0.75,
        "args_share": round(1 / 3, 4),
        "example_share": 0.25,
        "todos": 1,
    }


def test_cycles_count_once_in_a_path():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert house.cycles(graph) == [["b", "c"]]
    assert house.longest_path(graph) == ["a", "b", "d"]


def test_entries_of_a_file_are_kept(small, tmp_path):
    path = tmp_path / "new" / "house.json"
    for key in ("before", "after"):
        command = [sys.executable, "-m", "benchmarks.house", "--root", str(small)]
        command += ["--json", str(path), "--key", key]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "module floors: 4\n" in shown.stdout
    written = json.loads(path.read_text())
    assert list(written) == ["before", "after"]
    assert written["before"]["files"] == 9


def test_the_script_needs_no_package():
    program = "import sys, benchmarks.house; print('jax' in sys.modules)"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
