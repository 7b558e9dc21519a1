"""Tile programs as text: what is written is what is read, and what is not the format is refused."""

import pytest
from tile_runs import PROFILE, program_of

from compiler.contracts.errors import TargetError
from targets.vacc.kernels.attention import AttentionShape, attention
from targets.vacc.tile_check import check_tiles
from targets.vacc.tile_program import Meet, Span, Sum
from targets.vacc.tile_text import parse_tiles, tile_text

SHAPE = AttentionShape(heads=4, kv_heads=2, tokens=3, width=16, context=32, scale=0.25, window=0)
TEXT = tile_text(program_of(attention(SHAPE, PROFILE, name="a"), onchip_bytes=100_000))


def test_text_and_program_are_the_same() -> None:
    program = parse_tiles(TEXT)
    assert tile_text(program) == TEXT
    assert parse_tiles(tile_text(program)) == program
    assert program.workspace_bytes == 3 * 64 * 2


def _with(line: str, mem: str) -> str:
    """The program with a step behind its run."""
    declared = TEXT.replace("  run a module", f"  mem {mem} z\n  run a module")
    return declared.replace("  return y\n", f"  {line}\n  return z\n")


def test_collectives_are_steps() -> None:
    text = _with("all_gather lm_head ways=4 (y) -> (z)", "f16[3,256]")
    program = parse_tiles(text)
    assert program.meets == (Meet("all_gather", "lm_head", 4, "y", "z"),)
    assert tile_text(program) == text
    check_tiles(program, where="here")


@pytest.mark.parametrize(
    ("line", "mem", "message"),
    [
        ("all_reduce m ways=4 (y) -> (z)", "f16[3,256]", "of f16[3,64] by 4 ranks is not f16[3,2"),
        ("all_gather m ways=4 (y) -> (z)", "f32[3,256]", "of f16[3,64] by 4 ranks is not f32[3,2"),
        ("all_reduce m ways=4 (q2) -> (z)", "f16[3,64]", "there is no q2"),
    ],
)
def test_a_collective_of_other_types_is_refused(line: str, mem: str, message: str) -> None:
    with pytest.raises(TargetError) as caught:
        check_tiles(parse_tiles(_with(line, mem)), where="here")
    assert message in caught.value.message
    assert caught.value.where == "here: m"


def test_bounds_are_sums() -> None:
    span = Span(Sum(16, ((8, "h"), (1, "m"))), Sum(0, ((1, "m.n"),)))
    assert str(span) == "8*h+m+16:+m.n"
    assert span.start.value({"h": 2, "m": 5}) == 37


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vacc-tiles 1", "vacc-tiles 2", "tiles:1: the first line is not 'vacc-tiles 1'"),
        ("onchip 100000", "onchip many", "tiles:2: the second line is not `onchip BYTES`"),
        ("  begin sums", "  begin-sums", "this is no statement of a tile program: begin-sums"),
        ("buffer f16[2,3,16] qs", "buffer f8[2,3,16] qs", "expected `buffer TYPE NAME`"),
        ("q[2*h:+2", "q[2*h:2", "a region's axis is `start:+count`"),
        ("0:past+m+m.n", "0:past-m", "'past-m' is no sum of numbers and names"),
        ("  return y\n", "", "the tile program ends early"),
        ("  return y\n", "  return y\n  view f16[3] a = y\n", "expected nothing after `return`"),
        ("  run a module", "  walk a module", "expected `run`, `view`, a collective or"),
        ("      load qs", "        load qs", "this line is indented without a loop"),
    ],
)
def test_another_line_is_refused_with_its_place(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(TargetError) as caught:
        parse_tiles(TEXT.replace(old, new, 1))
    assert message in str(caught.value)
