"""What a program's text says of its collectives and its memory traffic, on texts short enough to count by hand."""

import pytest

from jaxdiff.scaling.hlo import Program

LOOPS = """HloModule m

%body.1 (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %gather = bf16[8,4]{1,0} all-gather(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %t = (s32[], bf16[8]) tuple(%i, %y)
}

%unrolled (q: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %q = (s32[], bf16[8]) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%q), index=0
  %j = s32[] add(%i, %one)
  %k = s32[] add(%j, %one)
  %send = bf16[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], bf16[8]) tuple(%k, %send)
}

%cond.1 (p: (s32[], bf16[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%cond.2 (p: (s32[], bf16[8])) -> pred[] {
  %p = (s32[], bf16[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(6)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.2 (a: bf16[8]) -> f32[] {
  %w = (s32[], bf16[8]) while(%init), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %v = (s32[], bf16[8]) while(%w), condition=%cond.2, body=%unrolled
  %start = (f32[2], f32[8]) all-gather-start(%z), replica_groups=[2,4]<=[8], dimensions={0}
  %sum = f32[10]{0} all-reduce(%q), replica_groups=[1,2]<=[2], to_apply=%add
  %scatter = f32[10]{0} reduce-scatter(%q), replica_groups={{0,1,2,3}}, to_apply=%add
  %trade = f32[10]{0} all-to-all(%q), dimensions={0}
}
"""


def test_collectives_count_as_often_as_they_run_and_by_what_arrives():
    assert Program(LOOPS).collectives() == {
        "all-gather": {"count": 4, "bytes": 3 * 64 + 32, "received": 3 * 48 + 24},
        "collective-permute": {"count": 3, "bytes": 48, "received": 48},  # 6 in steps of 2
        "all-reduce": {"count": 1, "bytes": 40, "received": 40},  # there and back, half of it each
        "reduce-scatter": {"count": 1, "bytes": 40, "received": 120},
        "all-to-all": {"count": 1, "bytes": 40, "received": 40},  # nobody says of how many
    }


HIDDEN = """HloModule m

%begins (p: bf16[1,4]) -> (bf16[1,4], bf16[8,4]) {
  %p = bf16[1,4]{1,0} parameter(0)
  %g = bf16[8,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  ROOT %t = (bf16[1,4]{1,0}, bf16[8,4]{1,0}) tuple(%p, %g)
}

%async_collective_fusion.3 (p: bf16[1,4], q: bf16[8,4], x: f32[100]) -> (f32[100], bf16[8,4]) {
  %p = bf16[1,4]{1,0} parameter(0)
  %q = bf16[8,4]{1,0} parameter(1)
  %x = f32[100]{0} parameter(2)
  %g = bf16[8,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %y = f32[100]{0} negate(%x)
  ROOT %t = (f32[100]{0}, bf16[8,4]{1,0}) tuple(%y, %q)
}

%ends (q: bf16[8,4]) -> bf16[8,4] {
  %q = bf16[8,4]{1,0} parameter(0)
  ROOT %g = bf16[8,4]{1,0} all-gather(%q), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (a: bf16[1,4], x: f32[100]) -> bf16[8,4] {
  %a = bf16[1,4]{1,0} parameter(0)
  %x = f32[100]{0} parameter(1)
  %async-collective-start.1 = (bf16[1,4]{1,0}, bf16[8,4]{1,0}) fusion(%a), kind=kCustom, calls=%begins
  %b = bf16[8,4]{1,0} get-tuple-element(%async-collective-start.1), index=1
  %fusion.9 = (f32[100]{0}, bf16[8,4]{1,0}) fusion(%a, %b, %x), kind=kCustom, calls=%async_collective_fusion.3
  %c = bf16[8,4]{1,0} get-tuple-element(%fusion.9), index=1
  ROOT %async-collective-done.1 = bf16[8,4]{1,0} fusion(%c), kind=kCustom, calls=%ends
}
"""


def test_a_collective_that_is_hidden_behind_other_work_counts_once():
    program = Program(HIDDEN)
    assert program.collectives() == {"all-gather": {"count": 1, "bytes": 64, "received": 56}}
    assert program.traffic() == (8 + 64) + 2 * 400  # the gather's, and what it is hidden behind


TRAFFIC = """HloModule m

%slices (w: f32[30,4,4], i: s32[], x: f32[4,4]) -> f32[4,4] {
  %w = f32[30,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[4,4]{1,0} parameter(2)
  %s = f32[1,4,4]{2,1,0} dynamic-slice(%w, %i), dynamic_slice_sizes={1,4,4}
  %b = f32[4,4]{1,0} bitcast(%s)
  ROOT %r = f32[4,4]{1,0} add(%b, %x)
}

%writes (k: f32[30,4,4], x: f32[4,4], i: s32[]) -> f32[30,4,4] {
  %k = f32[30,4,4]{2,1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %b = f32[1,4,4]{2,1,0} bitcast(%x)
  ROOT %u = f32[30,4,4]{2,1,0} dynamic-update-slice(%k, %b, %i)
}

%body (p: (s32[])) -> (s32[]) {
  %w = f32[30,4,4]{2,1,0} parameter(0)
  %i = s32[]{:T(128)S(1)} parameter(1)
  %x = f32[4,4]{1,0:T(8,128)S(1)} parameter(2)
  %y = f32[4,4]{1,0} fusion(%w, %i, %x), kind=kLoop, calls=%slices
  %z = f32[30,4,4]{2,1,0} fusion(%w, %y, %i), kind=kLoop, calls=%writes
  ROOT %t = (s32[]) tuple(%i)
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %n = f32[4,4]{1,0} negate(%a)
  %v = (s32[]) while(%a), condition=%none, body=%body, backend_config={"known_trip_count":{"n":"30"}}
  ROOT %d = f32[4,4]{1,0} dot(%a, %n), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_traffic_counts_slices_of_stacked_arrays_and_nothing_that_stays_on_the_chip():
    matrix = 4 * 4 * 4
    turn = 2 * matrix + 2 * matrix  # a slice read and a result written; that read and a slice written
    assert Program(TRAFFIC).traffic() == 30 * turn + 2 * matrix + 3 * matrix


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[2,4]T(1,0)", 4),
        ("mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a','b'}", 2),
        ("mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("mesh['a'=4] {'a':(2)2}", 2),
    ],
)
def test_groups_of_devices_are_read_in_every_way_that_they_are_written(groups, devices):
    text = f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  %s = f32[8]{{0}} all-gather(%a), replica_groups={groups}, dimensions={{0}}\n}}"
    found = Program(text).collectives()["all-gather"]
    assert found == {"count": 1, "bytes": 32, "received": 32 * (devices - 1) // devices}
