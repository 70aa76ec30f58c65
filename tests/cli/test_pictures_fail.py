"""A picture that cannot be drawn never fails a finished run."""

import shutil
from pathlib import Path

from zosam_jax.cli import pictures
from zosam_jax.cli.train import draw_curves
from zosam_jax.runs.progress import Silent

STORED = Path(__file__).parents[2] / "benchmarks" / "results" / "digits"


class Told(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def test_curves_that_cannot_be_drawn_are_told(tmp_path, monkeypatch):
    run, show = shutil.copytree(STORED, tmp_path / "run"), Told()
    (run / "curves.png").unlink()
    (run / "curves.png").mkdir()
    draw_curves(run, [run], show)

    def refuse(*_):
        raise ValueError("no such font")

    monkeypatch.setattr(pictures, "curves", refuse)
    draw_curves(run, [run], show)
    assert len(show.said) == 2
    assert all("curves.png could not be drawn: " in text for text in show.said)
    assert "ValueError: no such font" in show.said[1]
