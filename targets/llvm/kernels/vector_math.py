"""Vectors of fp32 in TIR: loads that widen, transposes, horizontal sums, and the exponential.

A vector is a TIR expression of `lanes` elements; one lane is a scalar. Everything here builds
expressions (and, where it says so, emits bindings into the function under construction), so that
kernels stay in straight-line code that LLVM keeps in registers.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Iterator, Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

# exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n * ln 2 in two parts (the first has few
# enough bits that n * _LN2_HIGH is exact), exp(r) by the polynomial of Cephes's expf (Moshier,
# https://www.netlib.org/cephes/, minimax on |r| <= ln 2 / 2).
_LOG2_E = 1.44269504088896341
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# Added before the conversion to int32, which truncates: what is converted is positive.
_POSITIVE = 128
_EXPONENT_BIAS, _MANTISSA_BITS = 127, 23
# Smallest argument whose exponential is a normal number: -126 * ln 2, rounded towards zero.
EXP_UNDERFLOW = -87.33654
_EXP_OVERFLOW = 88.02

FLOAT32_LOWEST = -3.4028234663852886e38


def typed(dtype: str, lanes: int) -> str:
    """TIR's name of a vector: `float32x16`, or `float32` for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: float | Expr, lanes: int) -> Expr:
    """A vector with `value` in every lane; a plain number is fp32."""
    scalar = tirx.const(value, "float32") if isinstance(value, int | float) else value
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def chunks(length: int, lanes: int) -> Iterator[tuple[int, int]]:
    """Cut `length` elements into (offset, width): whole vectors, then narrower powers of two."""
    offset = 0
    while offset < length:
        width = lanes
        while width > length - offset:
            width //= 2
        yield offset, width
        offset += width


def each_vector(length: int, lanes: int, emit: Callable[[Expr | int, int], None]) -> None:
    """Emit `emit(offset, width)` over a row: in a loop of whole vectors, then narrower ones."""
    whole = length - length % lanes
    if whole:
        with T.serial(whole // lanes) as step:
            emit(step * lanes, lanes)
    for offset, width in chunks(length - whole, lanes):
        emit(whole + offset, width)


def slice_of(start: Expr | int, lanes: int) -> Expr | int:
    """The index of `lanes` neighbouring elements from `start`."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def load(buffer: Buffer, indices: Sequence[Expr | int], lanes: int) -> Expr:
    """`lanes` neighbouring elements as fp32; bf16, fp16 and int8 are widened in registers."""
    value = buffer[(*indices[:-1], slice_of(indices[-1], lanes))]
    if buffer.dtype == "float32":
        return value
    if buffer.dtype in ("float16", "int8"):
        return T.cast(value, typed("float32", lanes))
    assert buffer.dtype == "bfloat16", buffer.dtype
    bits = T.cast(T.reinterpret(typed("uint16", lanes), value), typed("uint32", lanes))
    return T.reinterpret(typed("float32", lanes), bits << _uint(16, lanes))


def narrow(value: Expr, dtype: str, *, lanes: int) -> Expr:
    """Emit fp32 -> `dtype`, to nearest and ties to even; a NaN stays one, too large is infinite."""
    if dtype == "float32":
        return value
    if dtype == "float16":
        return T.cast(value, typed("float16", lanes))
    assert dtype == "bfloat16", dtype
    return T.reinterpret(typed("bfloat16", lanes), bfloat16_bits(value, lanes))


def bfloat16_bits(value: Expr, lanes: int) -> Expr:
    """Emit fp32 -> the uint16 that is its bfloat16, as `narrow` rounds.

    For scratch memory: TVM keeps buffers of bfloat16 that a function allocates in fp32.
    """
    value = T.Bind(value)
    bits = T.Bind(T.reinterpret(typed("uint32", lanes), value))
    odd = (bits >> _uint(16, lanes)) & _uint(1, lanes)
    rounded = (bits + odd + _uint(0x7FFF, lanes)) >> _uint(16, lanes)
    quiet = (bits >> _uint(16, lanes)) | _uint(0x40, lanes)
    half = T.Select(value == value, rounded, quiet)
    return T.cast(half, typed("uint16", lanes))


def store(buffer: Buffer, indices: Sequence[Expr | int], value: Expr, *, lanes: int) -> None:
    """Emit a store of `lanes` neighbouring elements."""
    T.buffer_store(buffer, value, [*indices[:-1], slice_of(indices[-1], lanes)])


def prefetch(buffer: Buffer, indices: Sequence[Expr | int], *, is_written: bool = False) -> None:
    """Emit a hint to bring a cache line near; its address may lie past the buffer's end.

    https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic: to read or to write, kept in all
    caches, data.
    """
    flags = (1 if is_written else 0, 3, 1)
    use, locality, data = (tirx.const(flag, "int32") for flag in flags)
    address = T.address_of(buffer[tuple(indices)])
    hint = T.call_llvm_intrin("llvm.prefetch.p0", address, use, locality, data, dtype="void")
    T.evaluate(hint)


def register(lanes: int, *, value: float | Expr = 0.0, dtype: str = "float32") -> Buffer:
    """Emit a variable of one vector, set to `value`; LLVM promotes it to a register.

    Its scope is `global`: TVM keeps small `global` buffers on the stack, and asks the heap for
    `local` ones (lower_tvm_builtin.cc). Its elements are scalars: StorageRewrite shares memory
    between buffers whose lifetimes are disjoint, and refuses vectors where the other has scalars.
    """
    variable = T.alloc_buffer((lanes,), dtype)
    if isinstance(value, int | float):
        value = splat(tirx.const(value, dtype), lanes)
    assign(variable, value)
    return variable


def value_of(variable: Buffer) -> Expr:
    """What a `register` holds."""
    return variable[slice_of(0, int(variable.shape[0]))]


def assign(variable: Buffer, value: Expr) -> None:
    """Emit `variable = value`."""
    store(variable, (0,), value, lanes=int(variable.shape[0]))


def zip_halves(a: Expr, b: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Emit a0 b0 a1 b1 ... as two vectors: the lower half's and the upper half's."""
    half = lanes // 2
    low = [lane for i in range(half) for lane in (i, lanes + i)]
    high = [lane + half for lane in low]
    return T.Bind(_shuffle([a, b], low)), T.Bind(_shuffle([a, b], high))


def transposed(vectors: Sequence[Expr], lanes: int) -> list[Expr]:
    """Emit the transpose of a [len(vectors), lanes] tile, row-major in as many vectors.

    Args:
        vectors: A power of two of vectors, bound to variables, at most `lanes`.
        lanes: Elements of each.

    Returns:
        Vectors which read one after the other are the [lanes, len(vectors)] tile.
    """
    tile = list(vectors)
    half = len(tile) // 2
    for _ in range(len(tile).bit_length() - 1):
        pairs = [zip_halves(tile[i], tile[i + half], lanes) for i in range(half)]
        tile = [vector for pair in pairs for vector in pair]
    return tile


def horizontal_sums(vectors: Sequence[Expr], lanes: int) -> Expr:
    """Emit the sum of each vector, in order, as one vector of len(vectors) lanes.

    Args:
        vectors: A power of two of vectors, bound to variables, at most `lanes`.
        lanes: Elements of each.
    """
    tile = list(vectors)
    count = len(tile)
    while len(tile) > 1:
        half = len(tile) // 2
        pairs = [zip_halves(tile[i], tile[i + half], lanes) for i in range(half)]
        tile = [T.Bind(low + high) for low, high in pairs]
    total, width = tile[0], lanes
    while width > count:
        width //= 2
        total = T.Bind(part(total, 0, width) + part(total, width, width))
    return total


def part(vector: Expr, offset: int, width: int) -> Expr:
    """`width` lanes of a vector from `offset`."""
    return _shuffle([vector], range(offset, offset + width))


def horizontal_max(vector: Expr, lanes: int) -> Expr:
    """Emit the largest lane as a scalar."""
    width = lanes
    while width > 1:
        width //= 2
        vector = T.Bind(T.max(part(vector, 0, width), part(vector, width, width)))
    return vector


def exp(x: Expr, lanes: int) -> Expr:
    """Emit e to the power of a bound fp32 vector: relative error under 1.2e-7 on [-87.33, 88].

    Below `EXP_UNDERFLOW`, -inf included, the result is +0 (denormal results are flushed); above
    88.02 it is exp(88.02). NaN gives 0.
    """
    # Not by adding and subtracting 1.5 * 2^23: TVM's simplifier cancels the two.
    clamped = T.Bind(T.max(T.min(x, splat(_EXP_OVERFLOW, lanes)), splat(-_EXP_OVERFLOW, lanes)))
    biased = clamped * splat(_LOG2_E, lanes) + splat(_POSITIVE + 0.5, lanes)
    floored = T.Bind(T.cast(biased, typed("int32", lanes)) - _int(_POSITIVE, lanes))
    n = T.Bind(T.cast(floored, typed("float32", lanes)))
    r = T.Bind(clamped - n * splat(_LN2_HIGH, lanes) - n * splat(_LN2_LOW, lanes))
    series = splat(_POLYNOMIAL[0], lanes)
    for coefficient in _POLYNOMIAL[1:]:
        series = series * r + splat(coefficient, lanes)
    mantissa = series * (r * r) + r + splat(1.0, lanes)
    exponent = floored + _int(_EXPONENT_BIAS, lanes)
    scale = T.reinterpret(typed("float32", lanes), exponent << _int(_MANTISSA_BITS, lanes))
    is_normal = x >= splat(EXP_UNDERFLOW, lanes)
    return T.Bind(T.Select(is_normal, mantissa * scale, splat(0.0, lanes)))


def _int(value: int, lanes: int) -> Expr:
    scalar = tirx.const(value, "int32")
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _uint(value: int, lanes: int) -> Expr:
    scalar = tirx.const(value, "uint32")
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])
