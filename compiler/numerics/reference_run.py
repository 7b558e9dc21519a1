"""Graphs on onnxruntime as a reference: unoptimised and on one thread, unless asked otherwise.

Equal arithmetic then gives equal bits. onnxruntime's own fusions must not be what is measured: by
default it turns DequantizeLinear and MatMul into a product with int8 activations, which is off even
where other fusions are asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays
from compiler.numerics.half_precision import spelled_in_float32
from compiler.numerics.quiet_runtime import import_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

_BFLOAT16 = "tensor(bfloat16)"


class ReferenceSession:
    """One graph, ready to run; 16-bit arithmetic rounds after each operator.

    Outputs in bfloat16, which numpy lacks, are given in float32.

    Args:
        model: A valid model; its functions need not be inlined.
        threads: Of one operator.
        is_optimised: Let onnxruntime fuse operators: another order of arithmetic, and faster.

    Raises:
        PassError: onnxruntime has no kernel for an operator of it, or refuses it otherwise.
    """

    def __init__(
        self, model: onnx.ModelProto, *, threads: int = 1, is_optimised: bool = False
    ) -> None:
        model = spelled_in_float32(model)
        self._session = _session(model, threads, is_optimised)
        outputs = self._session.get_outputs()
        self.outputs = tuple(output.name for output in outputs)
        self._given = self.outputs
        narrow = {output.name for output in outputs if output.type == _BFLOAT16}
        if narrow:
            self._given = tuple(f"{n}:float" if n in narrow else n for n in self.outputs)
            self._session = _session(_with_wide_outputs(model, narrow), threads, is_optimised)
        self._inputs = {one.name for one in self._session.get_inputs()}

    def run(self, feeds: "Mapping[str, np.ndarray | OrtValue]") -> dict[str, np.ndarray]:
        """The outputs by name; feeds that the graph does not take are left out.

        Raises:
            PassError: A node fails at run time, for example at a shape.
        """
        given = {name: ort_value(feeds[name]) for name in feeds if name in self._inputs}
        with _refusals():
            values = self._session.run_with_ort_values(list(self._given), given)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}


def _session(model: onnx.ModelProto, threads: int, is_optimised: bool) -> "InferenceSession":
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if is_optimised else levels.ORT_DISABLE_ALL
    )
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # A thread that waits must not keep a core from other libraries' threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Its arena keeps what one run needed for the next; a program in pieces has hundreds of them.
    options.enable_cpu_mem_arena = False
    with _refusals():
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """Say what onnxruntime refuses as the fault of the graph."""
    import_onnxruntime()
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        EPFail,
        Fail,
        InvalidArgument,
        InvalidGraph,
        NotImplemented,
        RuntimeException,
    )

    try:
        yield
    except (EPFail, Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException) as error:
        raise PassError(
            f"onnxruntime refuses the graph: {' '.join(str(error).split())}",
            hint="write `verify: structure` if the graph is meant for a target alone",
            code="not-runnable",
        ) from error


def _with_wide_outputs(model: onnx.ModelProto, narrow: set[str]) -> onnx.ModelProto:
    """A copy that gives the named bfloat16 outputs in float32, as `name:float`."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for output in wide.graph.output:
        if output.name in narrow:
            name = f"{output.name}:float"
            cast = onnx.helper.make_node(
                "Cast", [output.name], [name], name, to=onnx.TensorProto.FLOAT
            )
            wide.graph.node.append(cast)
            output.CopyFrom(onnx.ValueInfoProto(name=name))
    return wide


def run_model(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs of a model by name, once."""
    return ReferenceSession(model).run(inputs)


def ort_value(array: "np.ndarray | OrtValue") -> "OrtValue":
    """An array as onnxruntime takes it; bfloat16, which numpy lacks, through its bits."""
    if not isinstance(array, np.ndarray):
        return array
    made = import_onnxruntime().OrtValue
    array = np.ascontiguousarray(array)
    if array.dtype.name != "bfloat16":
        return made.ortvalue_from_numpy(array)
    return made.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), onnx.TensorProto.BFLOAT16)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of `model` whose outputs are the named tensors, wherever they are made."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return tapped
