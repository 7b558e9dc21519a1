import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax

from targets.llvm.features import detect, llvm_target
from targets.llvm.kernels.cache_update import cache_update

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_TOKENS, _CONTEXT = 5, 12


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", list(_DTYPES))
@pytest.mark.parametrize("head_dim", [20, 7, 64])
def test_writes_valid_rows_within_the_context(features, execute, rng, head_dim, dtype):
    func = cache_update(
        _TOKENS, 3, head_dim=head_dim, context=_CONTEXT, cache_dtype=dtype, features=features
    )
    cache = rng.standard_normal((_CONTEXT, 3, head_dim)).astype(_DTYPES[dtype])
    rows = rng.standard_normal((_TOKENS, 3, head_dim), dtype=np.float32)
    # NaN, infinity, a tie that goes to even, one that rounds up to even, and what overflows.
    rows[0, 0, :5] = np.nan, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38
    for past, valid, count in [(2, 3, 3), (10, 5, 2), (12, 4, 0), (0, 0, 0), (3, 9, 5), (0, 5, 5)]:
        got, *_ = execute(func, [cache, rows, np.array([past]), np.array([valid])])

        expected = cache.copy()
        expected[past : past + count] = rows[:count].astype(_DTYPES[dtype])
        np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))


def test_in_place_through_relax(rng):
    """The caller's own buffer changes, and the result is that buffer: nothing was copied."""
    features = detect()
    update = cache_update(2, 2, head_dim=16, context=8, cache_dtype="float32", features=features)

    module = _module(update, shape=(8, 2, 16), tokens=2)
    target = tvm.target.Target(llvm_target(features, threads=2))
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    cache = tvm.runtime.tensor(rng.standard_normal((8, 2, 16), dtype=np.float32))
    rows = rng.standard_normal((2, 2, 16), dtype=np.float32)
    before = cache.numpy()

    result = machine["main"](
        cache,
        tvm.runtime.tensor(rows),
        tvm.runtime.tensor(np.array([5])),
        tvm.runtime.tensor(np.array([1])),
    )

    expected = before.copy()
    expected[5] = rows[0]
    np.testing.assert_array_equal(cache.numpy(), expected)
    assert np.from_dlpack(result).ctypes.data == np.from_dlpack(cache).ctypes.data


def _module(update, *, shape, tokens):
    """main(cache, rows, past_length, valid_length): the kernel, in place on main's parameter."""
    cache = relax.TensorType(shape, "float32")
    parameters = [
        relax.Var("cache", cache),
        relax.Var("rows", relax.TensorType((tokens, *shape[1:]), "float32")),
        relax.Var("past_length", relax.TensorType((1,), "int64")),
        relax.Var("valid_length", relax.TensorType((1,), "int64")),
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        kernel = builder.add_func(update, "cache_update")
        call = relax.op.call_tir_inplace(kernel, parameters, 0, cache)
        builder.emit_func_output(builder.emit(call))
    return builder.get()
