"""How the programs of a sharded step are read, and what the table says of them."""

import jax

from benchmarks import sharded_step

# A line of a program for TPU that calls back, as XLA writes it.
SEND = "%a = (f32[4]{0}, u32[], token[]) send(%x), channel_id=3, is_host_transfer=true"


def test_a_call_of_the_host_is_found():
    def step(x):
        jax.debug.print("{}", x)
        return x

    def calls(step):
        program = jax.jit(step).lower(1.0).compile().as_text() or ""
        return len(sharded_step.HOST.findall(program))

    assert calls(step) == 1
    assert calls(lambda x: x + 1) == 0
    assert sharded_step.HOST.search(SEND)


def test_the_table_has_sizes_in_mebibytes():
    results = dict.fromkeys(sharded_step.KINDS, 0) | {"all-gather": 3 * 2**20}
    row = {"step": "MLP", "compiled_for": "CPU", "layout": "in parts"}
    row |= {"state_held": 2**21, "temporary": 2**20, "sent": 2.5 * 2**20}
    row |= {"operations": {"all-gather": 7}, "results": results, "host_calls": 0}
    header, line = sharded_step.lines([row])
    assert line == ["MLP", "CPU", "in parts", "2.0", "1.0", "2.5", *line[6:]]
    assert line[6:] == ["-", "7 of 3.0", "-", "-", "0"]
    assert len(header) == len(line)
