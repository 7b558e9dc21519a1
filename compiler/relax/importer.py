"""Program -> Relax IRModule, by TVM's ONNX importer with one extension: fused operators.

The importer ignores domains and knows no model-local function. A target gives a converter for each
fused operator that it takes whole; the others are inlined to the standard operators of their
functions first.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compiler.contracts.errors import TargetError
from compiler.contracts.program import Program
from compiler.contracts.tensor_parallel import COLLECTIVES
from compiler.relax.lean import import_tvm

if TYPE_CHECKING:
    import onnx
    from tvm import IRModule, relax

AttributeValue = int | float | str | Sequence[int] | Sequence[float]
# (builder, inputs, attributes of the node) -> the fused operator's value, emitted or not
FusedConverter = Callable[
    ["relax.BlockBuilder", "Sequence[relax.Expr]", Mapping[str, AttributeValue]], "relax.Expr"
]

# The extended map is a module attribute of TVM's importer while it runs.
_IMPORTER = threading.Lock()


def relax_from_program(
    program: Program, *, fused: Mapping[str, FusedConverter] | None = None
) -> "IRModule":
    """Import a program; `main` takes activations, then parameters, as the skeleton lists them.

    Args:
        program: After the last pass.
        fused: Fused operator -> converter, for those that the target takes whole.

    Raises:
        TargetError: TVM's importer lacks an operator.
    """
    import_tvm()
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    from compiler.relax.gathers import clamp_gathers

    converters = dict(fused or {})
    model = _inlined(program, converters)
    with _extended_importer(converters):
        _refuse_unknown(model, converters)
        module = from_onnx(model, sanitize_input_names=False)
    # The importer leaves a value unbound until it is used, and repeats it at every further use.
    return relax.transform.EliminateCommonSubexpr()(clamp_gathers(module))


def _inlined(program: Program, kept: Mapping[str, FusedConverter]) -> "onnx.ModelProto":
    """The skeleton, with every function that no converter takes replaced by its body."""
    import onnx.inliner

    model = program.model()
    names = [(f.domain, f.name) for f in model.functions if f.name not in kept]
    alone = sorted({name for _, name in names} & set(COLLECTIVES))
    if alone:
        raise TargetError(
            f"there is no converter for {alone[0]}, which is more than its function says",
            hint="give relax_from_program those of compiler.relax.collectives",
        )
    if not names:
        return model
    plain = onnx.inliner.inline_selected_functions(model, names)
    for node in plain.graph.node:
        if node.op_type == "Constant":
            _spell_as_tensor(node)
    return plain


def _spell_as_tensor(node: "onnx.NodeProto") -> None:
    """Constant(value_float=2.0) -> Constant(value=<tensor>), the one spelling that TVM reads."""
    import numpy as np
    import onnx

    (attribute,) = node.attribute
    dtype = {"value_float": np.float32, "value_int": np.int64}.get(attribute.name.rstrip("s"))
    if dtype is None:
        return
    value = np.asarray(onnx.helper.get_attribute_value(attribute), dtype=dtype)
    tensor = onnx.numpy_helper.from_array(value)
    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


@contextmanager
def _extended_importer(converters: Mapping[str, FusedConverter]) -> Iterator[None]:
    from tvm.relax.frontend.onnx import onnx_frontend

    with _IMPORTER:
        original = onnx_frontend._get_convert_map  # there is no public hook
        table = {**original(), **{name: _as_tvm_converter(c) for name, c in converters.items()}}
        onnx_frontend._get_convert_map = lambda: table
        try:
            yield
        finally:
            onnx_frontend._get_convert_map = original


def _as_tvm_converter(convert: FusedConverter) -> type:
    from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

    def run(
        _cls: type,
        builder: "relax.BlockBuilder",
        inputs: "Sequence[relax.Expr]",
        attributes: Mapping[str, AttributeValue],
        _scope: object,
    ) -> "relax.Expr":
        plain = {name: value for name, value in attributes.items() if name != "tvm_custom"}
        # Bound to a variable at once: the importer would repeat an unbound call at each use.
        return builder.emit(convert(builder, list(inputs), plain))

    return type("FusedOperator", (OnnxOpConverter,), {"_impl_v1": classmethod(run)})


def _refuse_unknown(model: "onnx.ModelProto", converters: Mapping[str, FusedConverter]) -> None:
    from tvm.relax.frontend.onnx import onnx_frontend

    known = onnx_frontend._get_convert_map()
    for node in model.graph.node:
        if node.op_type not in known and node.op_type not in converters:
            raise TargetError(
                f"TVM's ONNX importer has no operator '{node.op_type}'",
                where=node.name,
                hint="write a pass that rewrites it, or a target that converts it",
            )
