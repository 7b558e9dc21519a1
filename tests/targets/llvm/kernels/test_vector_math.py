import numpy as np
import pytest
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.vector_math import (
    EXP_UNDERFLOW,
    chunks,
    exp,
    horizontal_max,
    horizontal_sums,
    load,
    store,
    transposed,
)


def _kernel(x_shape, y_shape, emit):
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer(x_shape, "float32"))
        y = T.arg("y", T.buffer(y_shape, "float32"))
        emit(x, y)
    return builder.get()


def _exp_kernel(count, lanes):
    def emit(x, y):
        with T.serial(count // lanes) as i:
            value = T.Bind(load(x, (i * lanes,), lanes))
            store(y, (i * lanes,), exp(value, lanes), lanes=lanes)

    return _kernel((count,), (count,), emit)


def test_exp_over_the_whole_range(features, execute):
    count = 1 << 20
    x = np.linspace(EXP_UNDERFLOW, 88.0, count, dtype=np.float32)
    _, got = execute(_exp_kernel(count, features.lanes), [x, np.zeros_like(x)])
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)) <= 1.2e-7


def test_exp_near_zero_and_where_it_ends(features, execute):
    x = np.array(
        [
            0,
            -0.0,
            2**-30,
            -(2**-30),
            -87.34,
            -88,
            -104,
            -1e30,
            -np.inf,
            -(3.4e38),
            1,
            -1,
            90,
            1e30,
            np.inf,
            88,
        ],
        dtype=np.float32,
    )
    _, got = execute(_exp_kernel(16, features.lanes), [x, np.full_like(x, np.nan)])
    np.testing.assert_array_equal(got[:4], np.ones(4, np.float32))
    np.testing.assert_array_equal(got[4:10], np.zeros(6, np.float32))
    np.testing.assert_allclose(got[10:12], np.exp(x[10:12]), rtol=1.2e-7)
    np.testing.assert_allclose(got[12:15], np.exp(88.02), rtol=1e-5)


def test_exp_of_a_scalar(execute):
    x = np.linspace(-87, 0, 64, dtype=np.float32)
    _, got = execute(_exp_kernel(64, 1), [x, np.zeros_like(x)])
    np.testing.assert_allclose(got, np.exp(x.astype(np.float64)), rtol=1.2e-7)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_horizontal_sums_keep_their_order(features, execute, count):
    lanes = features.lanes

    def emit(x, y):
        vectors = [T.Bind(load(x, (i, 0), lanes)) for i in range(count)]
        store(y, (0,), horizontal_sums(vectors, lanes), lanes=count)

    x = np.arange(count * lanes, dtype=np.float32).reshape(count, lanes)
    _, got = execute(_kernel(x.shape, (count,), emit), [x, np.zeros(count, np.float32)])
    np.testing.assert_array_equal(got, x.sum(1))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_horizontal_max_finds_every_lane(features, execute, place):
    lanes = features.lanes

    def emit(x, y):
        store(y, (0,), horizontal_max(T.Bind(load(x, (0,), lanes)), lanes), lanes=1)

    x = np.full(lanes, -2, np.float32)
    x[place] = -1
    _, got = execute(_kernel((lanes,), (1,), emit), [x, np.zeros(1, np.float32)])
    np.testing.assert_array_equal(got, [-1])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_transposed_reads_down_the_columns(features, execute, count):
    lanes = features.lanes

    def emit(x, y):
        vectors = [T.Bind(load(x, (i, 0), lanes)) for i in range(count)]
        for i, vector in enumerate(transposed(vectors, lanes)):
            store(y, (i * lanes,), vector, lanes=lanes)

    x = np.arange(count * lanes, dtype=np.float32).reshape(count, lanes)
    _, got = execute(_kernel(x.shape, (count * lanes,), emit), [x, np.zeros(x.size, np.float32)])
    np.testing.assert_array_equal(got, x.T.ravel())


@pytest.mark.parametrize("length", range(40))
def test_chunks_cover_a_length_once(length):
    cut = list(chunks(length, 16))
    assert [k for k, width in cut for k in range(k, k + width)] == list(range(length))
    assert all(width in {1, 2, 4, 8, 16} for _, width in cut)
