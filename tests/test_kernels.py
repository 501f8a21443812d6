"""Kernels are counted as by hand, in a program as XLA prints it."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.measuring.instructions import Count, count, instructions, size
from benchmarks.studies.kernels import few_rows

PROGRAM = """HloModule jit_f, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%fused (p.0: f32[4,8], p.1: f32[]) -> f32[4,8] {
  %p.0 = f32[4,8]{1,0} parameter(0)
  %p.1 = f32[] parameter(1)
  %spread = f32[4,8]{1,0} broadcast(%p.1), dimensions={}
  ROOT %sum = f32[4,8]{1,0} add(%p.0, %spread)
}

%left (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %copy.1 = f32[4,8]{1,0} copy(%a)
}

%right (b: f32[4,8]) -> f32[4,8] {
  ROOT %b = f32[4,8]{1,0} parameter(0)
}

%body (carried: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %carried = (s32[], f32[4,8]{1,0}) parameter(0)
  %number = s32[] get-tuple-element(%carried), index=0
  %rows = f32[4,8]{1,0} get-tuple-element(%carried), index=1
  %one = f32[] constant(1)
  %step.1 = f32[4,8]{1,0} fusion(%rows, %one), kind=kLoop, calls=%fused, metadata={op_name="a(b)/c"}
  %product = (f32[4,8]{1,0}, s8[100]{0}) custom-call(%step.1, %rows), custom_call_target="__cublas$gemm"
  %first = f32[4,8]{1,0} get-tuple-element(%product), index=0
  ROOT %next = (s32[], /*index=1*/f32[4,8]{1,0}) tuple(%number, %first)
}

%condition (carried.1: (s32[], f32[4,8])) -> pred[] {
  %carried.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main.1 (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, LOOP
  %done = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %either = f32[4,8]{1,0} conditional(%zero, %done, %done), branch_computations={%left, %right}
}
"""
ROWS = 4 * 8 * 4
PASS = Count(2, (2 * ROWS + 4) + (3 * ROWS + 100))
"""One of the loop: a fusion and a product."""
AFTER = Count(1, 2 * ROWS)
"""The costlier branch."""


def test_a_loop_counts_as_often_as_it_is_passed():
    known = PROGRAM.replace("LOOP", 'backend_config={"known_trip_count":{"n":"20"},"known_init_step":{"init":"0"}}')
    assert count(instructions(known)) == AFTER.plus(PASS, 20)
    unknown = instructions(PROGRAM.replace(", LOOP", ""))
    assert count(unknown) == AFTER.plus(PASS)
    assert count(unknown, trips=3) == AFTER.plus(PASS, 3)


def test_sizes_of_arrays_and_tuples():
    assert size("f32[10,256]{1,0:T(8,128)}") == 10_240
    assert size("(f32[2]{0}, /*index=1*/pred[3]{0}, u32[])") == 8 + 3 + 4
    assert size("bf16[4]{0}") == 8


def test_what_xla_prints_here_is_read():
    """A loop of the sizes that a program has, compiled for what there is."""

    def three(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x @ x), x.sum()), x, None, length=3)

    text = jax.jit(three).lower(jnp.ones((16, 16))).compile().as_text()
    found = count(instructions(text))
    assert found.kernels >= 3 * 2
    assert found.bytes >= 3 * 3 * 16 * 16 * 4


@pytest.mark.parametrize("discrete", [False, True])
def test_data_have_the_form_of_those_that_are_timed(discrete):
    data = few_rows(discrete)
    assert data.action.shape == (1000, 6)
    assert (data.action.sum(axis=1) == 1).all() == discrete
    assert data.truncated.sum() == 10
