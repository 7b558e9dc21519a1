"""Time the CPU kernels: `python benchmarks/kernels.py [--only linear,...] [--dtypes float32]`.

Prints the best of N calls with the load of other processes beside it: a rival thread makes a
two-thread run several times slower. TVM_NUM_THREADS sets the threads (2 unless it is set). Weights
and caches are taken from enough copies that none is still in L2 when its turn comes.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TVM_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tvm

from targets.llvm.features import CpuFeatures, detect, llvm_target, permit_tiles
from targets.llvm.kernels.attention import attention
from targets.llvm.kernels.cache_update import cache_update
from targets.llvm.kernels.integer_linear import integer_linear
from targets.llvm.kernels.linear import linear
from targets.llvm.kernels.quantize_tokens import quantize_tokens
from targets.llvm.kernels.rms_norm import rms_norm
from targets.llvm.kernels.silu_mul import silu_mul

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Together more than any L2, and small enough for a machine of 8 GB.
_COLD_BYTES = 256 * 1024 * 1024

# (rows, outputs, inputs) of products.
_SHAPES = (
    (1, 1024, 1024),
    (1, 2816, 1024),
    (1, 1024, 2816),
    (1, 1536, 576),
    (1, 151936, 1024),
    (16, 2816, 1024),
    (128, 1536, 576),
    (128, 2816, 1024),
    (128, 1024, 2816),
    (1024, 2816, 1024),
)


@dataclass(frozen=True)
class Case:
    """One kernel and shape: its function, its arguments, and the least it must do."""

    kernel: str
    shape: str
    func: tvm.tirx.PrimFunc
    arguments: tuple[tuple[tuple[int, ...], str], ...]
    cold: tuple[int, ...]
    operations: float
    moved: float
    lengths: tuple[int, int] | None = None


def _cases(features: CpuFeatures, dtypes: list[str]) -> Iterator[Case]:
    for dtype in dtypes:
        for group in (0, 64) if dtype == "int8" else (0,):
            yield from _linear_cases(features, dtype, group)
    if "int8" in dtypes:
        yield from _integer_cases(features)
    floats = [dtype for dtype in dtypes if dtype != "int8"]
    for dtype in floats:
        yield from _attention_cases(features, dtype)
    for dtype in floats:
        yield _cache_case(features, dtype)
    for rows in (1, 128):
        matrix = ((rows, 1024), "float32")
        func = rms_norm(rows, 1024, epsilon=1e-6, features=features)
        moved = rows * 1024 * 8
        yield Case(
            "rms_norm", f"{rows}x1024", func, (matrix, ((1024,), "float32"), matrix), (), 0, moved
        )
        matrix = ((rows, 2816), "float32")
        func = silu_mul(rows, 2816, features=features)
        yield Case("silu_mul", f"{rows}x2816", func, (matrix,) * 3, (), 0, rows * 2816 * 12)


def _linear_cases(features: CpuFeatures, dtype: str, group: int) -> Iterator[Case]:
    for rows, outputs, inputs in _SHAPES:
        func = linear(
            rows,
            outputs,
            inputs=inputs,
            weight_dtype=dtype,
            has_bias=False,
            features=features,
            group=group,
        )
        scale = ((outputs, inputs // group) if group else (outputs,), "float32")
        weight = outputs * inputs * _ITEMSIZE[dtype]
        yield Case(
            "linear",
            f"{rows}x{inputs}->{outputs} {dtype}{f', groups of {group}' if group else ''}",
            func,
            (
                ((rows, inputs), "float32"),
                ((outputs, inputs), dtype),
                *((scale,) if dtype == "int8" else ()),
                ((rows, outputs), "float32"),
            ),
            (1,),
            2.0 * rows * outputs * inputs,
            weight + 4.0 * rows * (inputs + outputs),
        )


def _integer_cases(features: CpuFeatures) -> Iterator[Case]:
    for rows, outputs, inputs in _SHAPES:
        func = integer_linear(rows, outputs, inputs=inputs, has_bias=False, features=features)
        yield Case(
            "integer_linear",
            f"{rows}x{inputs}->{outputs}",
            func,
            (
                ((rows, inputs), "int8"),
                ((rows,), "float32"),
                ((outputs, inputs), "int8"),
                ((outputs,), "float32"),
                ((rows, outputs), "float32"),
            ),
            (2,),
            2.0 * rows * outputs * inputs,
            outputs * inputs + rows * (inputs + 4.0 * outputs),
        )
    for rows in (1, 128):
        func = quantize_tokens(rows, 1024, features=features)
        shape = (rows, 1024)
        yield Case(
            "quantize_tokens",
            f"{rows}x1024",
            func,
            ((shape, "float32"), (shape, "int8"), ((rows,), "float32")),
            (),
            0,
            rows * 1024 * 5,
        )


def _attention_cases(features: CpuFeatures, dtype: str) -> Iterator[Case]:
    for tokens, heads, kv_heads, head_dim, past, valid in [
        (1, 16, 16, 64, 1023, 1),
        (1, 9, 3, 64, 1023, 1),
        (1, 14, 2, 64, 127, 1),
        (128, 16, 16, 64, 0, 128),
        (128, 9, 3, 64, 0, 128),
        (128, 14, 2, 64, 0, 128),
        (1024, 16, 16, 64, 0, 1024),
        (1024, 14, 2, 64, 0, 1024),
        (1024, 16, 8, 128, 0, 1024),
        (1024, 16, 16, 64, 0, 100),
    ]:
        context = 2048
        func = attention(
            tokens,
            heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context=context,
            scale=head_dim**-0.5,
            cache_dtype=dtype,
            features=features,
        )
        query = ((tokens, heads, head_dim), "float32")
        cache = ((context, kv_heads, head_dim), dtype)
        length = ((1,), "int64")
        pairs = valid * past + valid * (valid + 1) / 2
        yield Case(
            "attention",
            f"{valid} of {tokens} at {past}, {heads}/{kv_heads}x{head_dim} {dtype}",
            func,
            (query, cache, cache, length, length, query),
            (1, 2),
            4.0 * heads * head_dim * pairs,
            2.0 * (past + valid) * kv_heads * head_dim * _ITEMSIZE[dtype],
            (past, valid),
        )


def _cache_case(features: CpuFeatures, dtype: str) -> Case:
    tokens, kv_heads, head_dim, context = 1, 16, 64, 2048
    func = cache_update(
        tokens,
        kv_heads,
        head_dim=head_dim,
        context=context,
        cache_dtype=dtype,
        features=features,
    )
    return Case(
        "cache_update",
        f"1 into {context}, {kv_heads}x{head_dim} {dtype}",
        func,
        (
            ((context, kv_heads, head_dim), dtype),
            ((tokens, kv_heads, head_dim), "float32"),
            ((1,), "int64"),
            ((1,), "int64"),
        ),
        (),
        0,
        float(tokens * kv_heads * head_dim * (4 + _ITEMSIZE[dtype])),
        (7, tokens),
    )


def _tensor(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> tvm.runtime.Tensor:
    if dtype == "int8":
        return tvm.runtime.tensor(rng.integers(-127, 128, shape, dtype=np.int8))
    values = rng.standard_normal(shape, dtype=np.float32)
    if dtype == "bfloat16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return tvm.runtime.tensor(bits)._create_view(shape, "bfloat16")
    return tvm.runtime.tensor(values.astype(dtype))


def _argument_sets(case: Case) -> list[list[tvm.runtime.Tensor]]:
    rng = np.random.default_rng(0)
    lengths = iter(case.lengths or ())
    base = [
        tvm.runtime.tensor(np.array([next(lengths)]))
        if dtype == "int64"
        else _tensor(shape, dtype, rng)
        for shape, dtype in case.arguments
    ]
    cold = sum(
        int(np.prod(case.arguments[i][0])) * _ITEMSIZE[case.arguments[i][1]] for i in case.cold
    )
    copies = 1 if cold == 0 else max(1, min(32, _COLD_BYTES // cold))
    others = [
        [_tensor(*case.arguments[i], rng) if i in case.cold else a for i, a in enumerate(base)]
        for _ in range(copies - 1)
    ]
    return [base, *others]


def _busy_seconds() -> float:
    """CPU time that all processes but this one have used, in seconds."""
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    total = sum(fields[:3]) + sum(fields[5:8])
    return total / os.sysconf("SC_CLK_TCK") - time.process_time()


def _measure(case: Case, features: CpuFeatures, seconds: float) -> tuple[float, float]:
    """Best seconds of one call, and cores that others kept busy meanwhile."""
    threads = int(os.environ["TVM_NUM_THREADS"])
    target = tvm.target.Target(llvm_target(features, threads=threads))
    kernel = tvm.compile(tvm.IRModule({"main": case.func}), target=target)["main"]
    sets = _argument_sets(case)
    for arguments in sets:
        kernel(*arguments)
    best = float("inf")
    busy, start = _busy_seconds(), time.perf_counter()
    for calls, arguments in enumerate(itertools.cycle(sets)):
        before = time.perf_counter()
        kernel(*arguments)
        best = min(best, time.perf_counter() - before)
        if calls >= 5 and time.perf_counter() - start > seconds:
            break
    return best, (_busy_seconds() - busy) / (time.perf_counter() - start)


def main() -> None:
    """Print a table of every kernel and shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels, separated by commas")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of weights and caches")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    options = parser.parse_args()
    features = detect()
    permit_tiles(features)
    only = set(filter(None, options.only.split(",")))
    print(f"threads {os.environ['TVM_NUM_THREADS']}, lanes {features.lanes}")
    print(f"{'kernel':17}{'shape':44}{'ms':>10}{'GFLOP/s':>10}{'GB/s':>8}{'others':>8}")
    for case in _cases(features, options.dtypes.split(",")):
        if only and case.kernel not in only:
            continue
        best, others = _measure(case, features, options.seconds)
        rate = f"{case.operations / best / 1e9:10.1f}" if case.operations else " " * 10
        speed = case.moved / best / 1e9
        print(
            f"{case.kernel:17}{case.shape:44}{best * 1e3:10.4f}{rate}{speed:8.1f}{others:8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
