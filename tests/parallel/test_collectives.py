"""Collectives read off a compiled program's text: bytes, loops, and what runs beside them."""

import pytest

from wallwm_jax.parallel.collectives import (
    asynchronous_share,
    collective_bytes,
    collectives_of,
)

HLO = """HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %all-gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%w), dimensions={0}
  %all-reduce.3 = (f32[4]{0}, f32[2]{0}) all-reduce(%a, %b), to_apply=%add
  %splash_mha_fwd.1 = bf16[8,4] custom-call(%q), custom_call_target="tpu_custom_call"
}

%condition.1 (p: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(30)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%fused (p: f32[16]) -> f32[16] {
  ROOT %all-reduce.9 = f32[16]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %while.1 = (s32[], bf16[8,4]) while(%t), condition=%condition.1, body=%body.1
  %fusion.1 = f32[16]{0} fusion(%x), kind=kCustom, calls=%fused
  %all-gather-start.1 = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %all-gather-done.1 = bf16[8,4]{1,0} all-gather-done(%all-gather-start.1)
}
"""


def test_collectives_are_counted_with_their_loops():
    assert collective_bytes(HLO) == {
        "all-gather": 30 * 8 * 4 * 2 + 8 * 4 * 2,
        "all-reduce": 30 * (4 + 2) * 4 + 16 * 4,
    }


TPU = """HloModule jit_g

%all-reduce-scatter.7.clone (p: bf16[64,4]) -> bf16[4,4] {
  %all-reduce.1 = bf16[64,4]{1,0} all-reduce(%p), channel_id=7, replica_groups={{0,1},{2,3}}
}

%begin (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %all-gather.1 = bf16[4,8]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8]
}

%async_collective_fusion.3 (p: bf16[1,8]) -> (f32[9], bf16[4,8]) {
  %all-gather.2 = bf16[4,8]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8]
  %convolution.1 = f32[9] convolution(%p, %q), dim_labels=bf_io->bf
}

%end (p: bf16[1,8]) -> bf16[4,8] {
  %all-gather.3 = bf16[4,8]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[8]
}

%body.2 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %async-collective-start = (bf16[1,8], bf16[4,8]) fusion(%w), kind=kCustom, calls=%begin
  %fusion.4 = (f32[9], bf16[4,8]) fusion(%x), kind=kOutput, calls=%async_collective_fusion.3
  %async-collective-done = bf16[4,8] fusion(%fusion.4), kind=kCustom, calls=%end
  %fusion.5 = bf16[4,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7.clone
  %all-gather.9 = f32[6]{0} all-gather(%v), channel_id=9, replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}
  %all-reduce.5 = bf16[512] all-reduce(%n), channel_id=5, replica_groups={{0},{1},{2},{3}}
  %all-reduce.6 = bf16[512] all-reduce(%n), channel_id=6, replica_groups=mesh['a'=8,'b'=1], device_ids=[8] {'b'}
  %reduce-scatter.1 = f32[3]{0} reduce-scatter(%n), channel_id=8, replica_groups=[4,2]<=[8]
}

%condition.2 (p: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %while.2 = (s32[], bf16[8,4]) while(%t), condition=%condition.2, body=%body.2
}
"""


def test_fused_and_asynchronous_collectives_count_once_and_lonely_ones_never():
    """As TPUs write them: a gather over three fusions, a scatter as an all-reduce and a slice."""
    assert collective_bytes(TPU) == {
        "all-gather": 5 * (4 * 8 * 2 + 6 * 4),
        "reduce-scatter": 5 * (64 * 4 * 2 + 3 * 4 * 2),
    }
    found = collectives_of(TPU)
    assert [c.asynchronous for c in found] == [True, False, False, False]
    assert asynchronous_share(found) == pytest.approx(64 / (64 + 24 + 512 + 24))
    assert asynchronous_share([]) == 1.0


SPARSECORE = """HloModule jit_h, is_scheduled=true

%called_computation (p: bf16[4,64], t: token[]) -> bf16[64,64] {
  ROOT %all-gather.1 = bf16[64,64]{1,0} all-gather(%p), channel_id=1, replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}, dimensions={0}
}, execution_thread="sparsecore"

%called_computation.1 (p: bf16[64,32], t: token[]) -> bf16[4,32] {
  ROOT %reduce-scatter.1 = bf16[4,32]{1,0} reduce-scatter(%p), channel_id=2, replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

%product (x: bf16[8,64], w: bf16[64,64]) -> bf16[8,64] {
  ROOT %convolution.1 = bf16[8,64]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%norm (x: bf16[8,64]) -> bf16[8,64] {
  ROOT %multiply.1 = bf16[8,64]{1,0} multiply(%x, %x)
}

ENTRY %main (w: bf16[4,64], x: bf16[8,64], g: bf16[64,32]) -> bf16[4,32] {
  %prepare_start = s32[]{:S(2)} custom-call(), custom_call_target="PrepareAsyncCallStart"
  %prepare_done = token[] custom-call(%prepare_start), custom_call_target="PrepareAsyncCallDone"
  %all-gather.1.call-start = ((bf16[4,64], token[]), bf16[64,64]) call-start(%w, %prepare_done), async_execution_thread="sparsecore", to_apply=%called_computation
  %reduce-scatter.1.call-start = ((bf16[64,32], token[]), bf16[4,32]) call-start(%g, %prepare_done), async_execution_thread="sparsecore", to_apply=%called_computation.1
  BETWEEN_BOTH
  %all-gather.1.call-done = bf16[64,64]{1,0} call-done(%all-gather.1.call-start)
  BETWEEN_ONE
  %reduce-scatter.1.call-done = bf16[4,32]{1,0} call-done(%reduce-scatter.1.call-start)
  %fusion.9 = bf16[8,64]{1,0} fusion(%x, %all-gather.1.call-done), kind=kOutput, calls=%product
}
"""

PRODUCT = "%fusion.1 = bf16[8,64]{1,0} fusion(%x, %v), kind=kOutput, calls=%product"
NORM = "%fusion.2 = bf16[8,64]{1,0} fusion(%x), kind=kLoop, calls=%norm"
KERNEL = '%splash = bf16[8,64] custom-call(%q), custom_call_target="tpu_custom_call"'
LOOP = "%while.1 = (s32[]) while(%t), condition=%c, body=%b"


@pytest.mark.parametrize(
    "both, one, gather, scatter",
    [
        ("", "", False, False),
        (NORM, NORM, False, False),
        (PRODUCT, "", True, True),
        (NORM, PRODUCT, False, True),
        ("", KERNEL, False, True),
        (LOOP, NORM, True, True),
    ],
    ids=["nothing", "norms", "product", "late", "kernel", "loop"],
)
def test_a_collective_on_a_sparsecore_is_asynchronous_only_if_the_chip_computes_meanwhile(
    both, one, gather, scatter
):
    """What follows the end, here the product that waits for the gather, does not count."""
    text = SPARSECORE.replace("BETWEEN_BOTH", both).replace("BETWEEN_ONE", one)
    assert collective_bytes(text) == {"all-gather": 64 * 64 * 2, "reduce-scatter": 64 * 32 * 2}
    assert [c.asynchronous for c in collectives_of(text)] == [gather, scatter]


def test_two_of_one_channel_and_size_are_two_and_neither_is_the_other_s_end():
    """Inside `shard_map` all have channel 1; what lies between two that wait hides neither."""
    text = """HloModule jit_l

%fused (p: bf16[64,4]) -> bf16[64,4] {
  ROOT %all-reduce.1 = bf16[64,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
}

ENTRY %main (x: bf16[64,4]) -> bf16[64,4] {
  %fusion.1 = bf16[64,4] fusion(%x), kind=kCustom, calls=%fused
  %dot.1 = f32[8,8] dot(%a, %b), lhs_contracting_dims={1}
  %fusion.2 = bf16[64,4] fusion(%y), kind=kCustom, calls=%fused
}
"""
    assert [(c.total, c.asynchronous) for c in collectives_of(text)] == [(512, False)] * 2


@pytest.mark.parametrize("name", ["all-gather-start.1", "all-gather-start.11"])
def test_a_start_is_ended_by_its_own_done(name):
    """Names of which one begins like the other; the product lies between the second pair."""
    text = f"""HloModule jit_k

ENTRY %main (x: bf16[2,4]) -> bf16[8,4] {{
  %all-gather-start.1 = (bf16[2,4], bf16[8,4]) all-gather-start(%x), channel_id=1, replica_groups=[1,4]<=[4]
  %all-gather-start.11 = (bf16[2,4], bf16[8,4]) all-gather-start(%y), channel_id=2, replica_groups=[1,4]<=[4]
  %all-gather-done.3 = bf16[8,4] all-gather-done(%{name})
  %dot.1 = f32[8,8] dot(%a, %b), lhs_contracting_dims={{1}}
  %all-gather-done.4 = bf16[8,4] all-gather-done(%all-gather-start.{"11" if name.endswith(".1") else "1"})
}}
"""
    later = not name.endswith(".11")
    assert [c.asynchronous for c in collectives_of(text)] == [not later, later]
