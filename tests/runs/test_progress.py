import io
import time

from rich.console import Console

from zosam_jax.runs import progress

STATUS = progress.Status(
    step=30,
    total_steps=120,
    epoch=2,
    epochs=8,
    loss=1.23456,
    accuracy=0.5,
    test_accuracy=None,
    sparsity=0.9,
    images_per_second=1234.5,
    seconds_left=3725.0,
)


def test_plain_lines_hold_all_figures():
    out = io.StringIO()
    lines = progress.Lines(10.0, Console(file=out, soft_wrap=True))
    lines.message("[bold] is no markup")
    lines.update(STATUS)
    lines.epoch(STATUS._replace(test_accuracy=0.75, epoch=8))
    lines.close()
    said, within, end = out.getvalue().splitlines()
    assert said == "[bold] is no markup"
    figures = "loss 1.2346  train 50.00%  test      -  sparsity 90.00%  1,234 images/s"
    assert within == f"  step 30/120  {figures}  1:02:05 left"
    assert end.startswith("epoch 8/8  loss 1.2346  train 50.00%  test 75.00%")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_live_bar():
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=True, width=200))
    bar.close()
    bar.update(STATUS)
    bar.message("compiled")
    bar.epoch(STATUS._replace(test_accuracy=0.75))
    bar.close()
    assert "epoch 2/8" in out.getvalue()
    assert "test 75.00%" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_a_terminal_keeps_a_history_of_epochs_as_wide_as_it_is():
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=True, width=60))
    for epoch in (1, 2):
        bar.epoch(STATUS._replace(test_accuracy=0.75, epoch=epoch))
    bar.close()
    for epoch in (1, 2):
        line = f"epoch {epoch}/8  loss 1.2346  train 50.00%  test 75.00%"
        assert out.getvalue().count(f"{line}\n") == 1


def test_a_terminal_counts_the_seconds_of_work(monkeypatch):
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=True, width=60))
    monkeypatch.setattr(progress, "_TICK", 0.01)
    clock = progress._Clock(bar._console)
    while out.getvalue().count("\r0:00 ") < 2:
        time.sleep(0.01)
    clock.stop()
    assert out.getvalue().endswith("\r0:00 \r\x1b[2K")
    assert not clock._thread.is_alive()
    bar.message("compiling...")
    assert bar._clock is not None
    bar.message("compiled")
    assert bar._clock is None


def test_lines_are_chosen_without_a_terminal():
    shown = progress.display(5.0)
    assert isinstance(shown._display, progress.Lines)
    assert shown.interval == 5.0
