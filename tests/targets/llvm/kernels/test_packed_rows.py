import ml_dtypes
import numpy as np
import pytest
from packed_weights import packed

from targets.llvm.kernels.packed_rows import packed_rows


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 128), (37, 100), (5, 3), (33, 66)])
def test_rows_come_out_as_they_were(execute, rng, dtype, outputs, inputs):
    table = rng.integers(-127, 128, (outputs, inputs)).astype(dtype)
    # Ids outside are taken as the nearest row: nothing outside the table is read.
    ids = np.array([0, outputs - 1, outputs // 2, -5, outputs + 40], np.int64)
    name = "int8" if dtype is np.int8 else "bfloat16"
    func = packed_rows(len(ids), outputs, inputs=inputs, dtype=name)
    *_, got = execute(func, [packed(table), ids, np.zeros((len(ids), inputs), dtype)])
    assert np.array_equal(got, table[np.clip(ids, 0, outputs - 1)])
