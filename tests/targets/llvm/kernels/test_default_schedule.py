# TVMScript's annotations are calls, and its names are made when it is imported.
# pyright: reportInvalidTypeForm=false, reportAttributeAccessIssue=false
# pyright: reportMissingModuleSource=false

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from targets.llvm.features import from_names, llvm_target
from targets.llvm.kernels.default_schedule import schedule_rest
from targets.llvm.kernels.linear import linear


@I.ir_module
class _Model:
    @R.function
    def main(
        x: R.Tensor((64, 512), "float32"),
        ids: R.Tensor((64,), "int64"),
        table: R.Tensor((50, 512), "float32"),
        w: R.Tensor((512, 48), "float32"),
    ) -> R.Tensor((64, 48), "float32"):
        with R.dataflow():
            weights = R.nn.softmax(x, axis=-1)
            squares = R.mean(R.multiply(x, x), axis=-1, keepdims=True)
            rows = R.take(table, ids, axis=0)
            mixed = R.add(R.multiply(weights, R.rsqrt(squares)), rows)
            out = R.matmul(mixed, w)
            R.output(out)
        return out


@I.ir_module
class _Ragged:
    @R.function
    def main(x: R.Tensor((3, 37), "float32")) -> R.Tensor((3, 37), "float32"):
        with R.dataflow():
            out = R.multiply(R.nn.softmax(x, axis=-1), R.sum(x))
            R.output(out)
        return out


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def lower(request):
    fuse = [
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    passes = [relax.transform.LegalizeOps(), *(fuse if request.param else [])]
    return tvm.transform.Sequential(passes)


def _call(module, features, arrays):
    target = tvm.target.Target(llvm_target(features, threads=2))
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    return machine["main"](*[tvm.runtime.tensor(a) for a in arrays]).numpy()


def test_keeps_the_meaning(features, rng, lower):
    arrays = [
        rng.standard_normal((64, 512), dtype=np.float32),
        rng.integers(0, 50, 64),
        rng.standard_normal((50, 512), dtype=np.float32),
        rng.standard_normal((512, 48), dtype=np.float32),
    ]
    module = lower(_Model)
    scheduled = schedule_rest(module, features=features, threads=2)

    got = _call(scheduled, features, arrays)

    x, ids, table, w = (a if a.dtype == np.int64 else a.astype(np.float64) for a in arrays)
    weights = np.exp(x - x.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    mixed = weights / np.sqrt((x * x).mean(1, keepdims=True)) + table[ids]
    bound = 512 * 2.0**-24 * (np.abs(mixed) @ np.abs(w))
    assert np.all(np.abs(got - mixed @ w) <= bound)


def test_ragged_shapes_stay_right(features, rng, lower):
    x = rng.standard_normal((3, 37), dtype=np.float32)
    scheduled = schedule_rest(lower(_Ragged), features=features, threads=2)
    wide = np.exp(x.astype(np.float64))
    expected = wide / wide.sum(1, keepdims=True) * x.astype(np.float64).sum()
    np.testing.assert_allclose(_call(scheduled, features, [x]), expected, rtol=1e-5)


def test_every_function_is_vectorized_and_large_ones_parallel(lower):
    scheduled = schedule_rest(lower(_Model), features=from_names(["avx2"]), threads=2)
    functions = [f for _, f in scheduled.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    assert all(f.attrs["tirx.is_scheduled"] for f in functions)
    scripts = {f.script() for f in functions}
    wide = [s for s in scripts if "512" in s]
    assert wide
    assert all("T.vectorized(T.int64(8))" in s and "T.parallel" in s for s in wide)


def test_one_thread_means_no_parallel_loop(lower):
    scheduled = schedule_rest(lower(_Model), features=from_names([]), threads=1)
    assert "T.parallel" not in scheduled.script()


def test_the_given_module_and_scheduled_functions_are_left_alone(lower):
    features = from_names([])
    module = lower(_Model)
    kernel = linear(1, 8, inputs=8, weight_dtype="float32", has_bias=False, features=features)
    module = module.clone()
    module.update_func(tvm.ir.GlobalVar("kernel"), kernel)
    before = module.script()

    scheduled = schedule_rest(module, features=features, threads=2)

    assert module.script() == before
    tvm.ir.assert_structural_equal(scheduled["kernel"], kernel)


def test_what_it_does_not_understand_is_left(features):
    @T.prim_func(s_tir=True)
    def scan(x: T.Buffer((16,), "float32")):
        for i in T.serial(15):
            x[i + 1] = x[i + 1] + x[i]

    scheduled = schedule_rest(tvm.IRModule({"scan": scan}), features=features, threads=2)
    tvm.ir.assert_structural_equal(scheduled["scan"], scan)
