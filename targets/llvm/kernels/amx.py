"""Intel AMX in TIR: tiles of 16 rows of 64 bytes, and products of two of them.

A tile register holds 1 KiB. `dot` adds to C[16][16] (int32 or fp32) the product of A, whose row m
holds 64 bytes along the depth, and B, whose row r holds for each of 16 columns the 4 bytes of
depths 4r.. (int8), or 2r and 2r + 1 (bfloat16). Intel's Architecture Instruction Set Extensions
Programming Reference, chapter 3, has both.

A thread configures its tiles before it uses them, and a process asks Linux once for the right to
(`targets.llvm.features.permit_tiles`); https://docs.kernel.org/arch/x86/xstate.html.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

ROWS = 16
ROW_BYTES = 64
TILES = 8
# Products of C's dtype by the dtypes of A and B.
_DOTS = {
    ("bfloat16", "bfloat16"): "tdpbf16ps",
    ("int8", "int8"): "tdpbssd",
    ("uint8", "int8"): "tdpbusd",
}


def configure() -> None:
    """Emit a configuration of eight whole tiles for the thread that runs it."""
    config = T.alloc_buffer((64,), "uint8")
    T.buffer_store(config, tirx.Broadcast(tirx.const(0, "uint8"), 64), [tirx.Ramp(0, 1, 64)])
    T.buffer_store(config, tirx.const(1, "uint8"), [0])
    for tile in range(TILES):
        T.buffer_store(config, tirx.const(ROW_BYTES, "uint8"), [16 + 2 * tile])
        T.buffer_store(config, tirx.const(ROWS, "uint8"), [48 + tile])
    _emit("ldtilecfg", T.address_of(config[0]))


def release() -> None:
    """Emit the end of tiles on this thread: their state is saved at every context switch."""
    _emit("tilerelease")


def zero(tile: int) -> None:
    """Emit tile = 0."""
    _emit("tilezero", _number(tile))


def load(tile: int, buffer: Buffer, indices: Sequence[Expr | int]) -> None:
    """Emit a load of 1 KiB, the rows one behind the other, from an element of a buffer."""
    address = T.address_of(buffer[tuple(indices)])
    _emit("tileloadd64", _number(tile), address, tirx.const(ROW_BYTES, "int64"))


def store(tile: int, buffer: Buffer, indices: Sequence[Expr | int]) -> None:
    """Emit a store of the tile, its rows one behind the other."""
    address = T.address_of(buffer[tuple(indices)])
    _emit("tilestored64", _number(tile), address, tirx.const(ROW_BYTES, "int64"))


def dot(total: int, left: int, right: int, *, dtypes: tuple[str, str]) -> None:
    """Emit total += left x right, whose elements have these dtypes."""
    _emit(_DOTS[dtypes], _number(total), _number(left), _number(right))


def _number(tile: int) -> Expr:
    assert 0 <= tile < TILES, f"tile {tile} of {TILES}"
    return tirx.const(tile, "uint8")


def _emit(name: str, *arguments: Expr) -> None:
    T.evaluate(T.call_llvm_intrin(f"llvm.x86.{name}", *arguments, dtype="void"))
