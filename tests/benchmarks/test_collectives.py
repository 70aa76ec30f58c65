"""What programs exchange, read from their text, and what follows for more devices."""

import pytest

from benchmarks import collectives
from benchmarks.collectives import Cost

PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = bf16[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
}

%cheap (p: f32[8]) -> f32[8] {
  %s = f32[] all-reduce(%x), to_apply=%add
}

%dear (p: f32[8]) -> f32[8] {
  %g = f32[16]{0} all-gather(%x), dimensions={0}
  %h = f32[2]{0} reduce-scatter(%x), dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %both = (f32[4,2]{1,0}, s32[], /*index=2*/f32[]) all-reduce(%x, %y, %z), to_apply=%add
  %loop = s32[] while(%t), body=%body, config={"known_trip_count":{"n":"3"}}
  %chosen = f32[8] conditional(%i, %x, %x), branch_computations={%cheap, %dear}
  %moved = f32[8] collective-permute(%x), source_target_pairs={{0,1}}
}
"""


def test_loops_count_as_often_as_they_run_and_of_branches_the_dearest():
    """On four devices, each sends three quarters in a ring, twice in an all-reduce."""
    once = 2 * (4 * 2 * 4 + 4 + 4) * 3 / 4
    loop = 3 * (2 * 8 * 2 * 3 / 4)
    branch = 16 * 4 * 3 / 4 + 4 * (2 * 4) * 3 / 4
    assert collectives.sent(PROGRAM, 4) == (once + loop + branch + 8 * 4, 1 + 3 + 2 + 1)


# As XLA for TPU writes a reduce-scatter, and a gather that overlaps two products.
TPU = """HloModule step

%all-reduce-scatter.3 (input: f32[16,2]) -> f32[4,2] {
  %r = f32[16,2]{1,0:T(8,128)} all-reduce(%input), channel_id=7, to_apply=%add
  ROOT %s = f32[4,2]{1,0} dynamic-slice(%r, %i, %zero), dynamic_slice_sizes={4,2}
}

%begin (x: bf16[2]) -> bf16[8] {
  %g = bf16[8]{0:T(8,128)(2,1)} all-gather(%x), channel_id=5, dimensions={0}
}

%end (x: bf16[2]) -> bf16[8] {
  %g = bf16[8]{0:T(8,128)(2,1)} all-gather(%x), channel_id=5, dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %s = f32[4,2]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %a = bf16[8]{0} fusion(%x), kind=kCustom, calls=%begin
  %b = bf16[8]{0} fusion(%a), kind=kCustom, calls=%end
  %p = (f32[8]{0}, f32[8]{0}) collective-permute-start(%x), channel_id=1
}
"""


def test_programs_for_tpu_are_read_as_they_run():
    sent, count = collectives.sent(TPU, 4)
    scattered, gathered, moved = 16 * 2 * 4 * 3 / 4, 8 * 2 * 3 / 4, 8 * 4
    assert (sent, count) == (scattered + gathered + moved, 3)
    found = [("reduce-scatter", 32), ("all-gather", 16), ("collective-permute", 32)]
    assert collectives.operations(TPU, 4) == found


def test_what_a_parameter_adds_is_told_from_what_every_program_needs():
    """Of 3 + 5 / k bytes a parameter, and 1,000 bytes beside."""
    sizes = (100, 400)

    def cost(n, k):
        held = 1000 + round(n * (3 + 5 * 8 / k))
        return Cost(12 + 16 * n * (k - 1) / k, 1, held - 200, 200)

    found = collectives.slope([[cost(n, k) for n in sizes] for k in (4, 8)], sizes)
    assert found == pytest.approx((16, 3, 40))
    assert found.of(10**9, 256) == pytest.approx((16e9 * 255 / 256, 3e9 + 40e9 / 256))


def test_the_table_has_a_line_for_each_gradient():
    row = {"sent": 8.0, "whole": 0.01, "split": 12.0}
    row |= {"large": {str(k): [8e9, 1.5e9] for k in collectives.CHIPS}}
    rows = [
        {"gradient": name, "layout": layout, **row}
        for name in ("SGD", "SAM")
        for layout in collectives.LAYOUTS
    ]
    header, *lines = collectives.lines(rows)
    assert [line[0] for line in lines] == ["SGD", "SAM"]
    assert lines[0][1:] == 2 * ["8.0", "12.0/k", *["8 / 1.5"] * 3]
    assert len(header) == len(lines[0])
