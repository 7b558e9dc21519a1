"""Why an exporter's graph took TVM a minute to compile, and that nothing of it is left.

A Reshape of a tensor with n axes of unknown length becomes n nested floor divisions in one TIR
function; building it takes time exponential in n (0.05 s for three axes, half a minute for five).
TVM meets such a tensor where the shape of an Expand, a constant of the file, was made a parameter
along with the weights.
"""

from pathlib import Path

import onnx_graphsurgeon as gs
import pytest
from exported_models import LAYERS, VARIANTS, write_export
from program_text import program_from_text
from traced_models import CONTEXT, WINDOW

from compiler import registry
from compiler.config import EXPORTED_PASSES
from compiler.relax import import_tvm, relax_from_program
from compiler.stages.import_onnx import import_onnx, locate_onnx
from compiler.stages.rewrite import PlannedPass, rewrite

REPEATED = """
main (float[1, 2, 40, 16] keys) => (float[1, 4, 40, 16] y)
<
  int64[5] times = {1, 2, 2, 40, 16}, int64[4] merged = {1, 4, 40, 16}, int64[1] group = {2}
>
{
  ["k/Unsqueeze"] apart = Unsqueeze (keys, group)
  ["k/Expand"] repeated = Expand (apart, times)
  ["k/Reshape"] y = Reshape (repeated, merged)
}
"""


def unknown_axes(module: object) -> int:
    """Most axes of unknown length of any tensor of `main`."""
    import_tvm()
    from tvm import relax

    most = 0

    def visit(expression: relax.Expr) -> None:
        nonlocal most
        shape = getattr(expression.ty, "shape", None) if hasattr(expression, "ty") else None
        if isinstance(shape, relax.ShapeExpr):
            known = (int, "IntImm")
            axes = [axis for axis in shape.values if type(axis).__name__ not in known]
            most = max(most, len(axes))

    relax.analysis.post_order_visit(module["main"], visit)  # type: ignore[index]
    return most


def test_a_shape_that_became_a_parameter_leaves_five_axes_unknown() -> None:
    import_tvm()
    from tvm.relax.frontend.onnx import from_onnx

    model = program_from_text(REPEATED).model()
    assert unknown_axes(from_onnx(model, keep_params_in_input=True)) == 5
    assert unknown_axes(from_onnx(model)) == 0


def test_here_shapes_are_constants_and_nothing_is_unknown() -> None:
    assert unknown_axes(relax_from_program(program_from_text(REPEATED))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_repeated_and_nothing_unknown_after_the_passes(
    tmp_path: Path, variant: str
) -> None:
    path = write_export(tmp_path / "model.onnx", variant)
    checkpoint = locate_onnx(path, window=WINDOW)
    programs = import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT)
    planned = [PlannedPass(registry.load_pass(name)(), "test") for name in EXPORTED_PASSES]
    for program in rewrite(programs, planned).programs:
        operators = {node.op for node in program.graph.nodes}
        assert operators.isdisjoint({"Expand", "IsNaN", "GatherND", "Shape"})
        assert len(program.graph.nodes) < 80 * LAYERS
        assert unknown_axes(relax_from_program(program)) == 0


def test_shapes_stay_constants_whatever_passes_are_declared(tmp_path: Path) -> None:
    """The shape of an Expand is no parameter even of a graph that no pass has seen."""
    path = write_export(tmp_path / "model.onnx", "eager_18")
    checkpoint = locate_onnx(path, window=WINDOW)
    programs = import_onnx(path, checkpoint, window=WINDOW, context=CONTEXT)
    program = programs.programs["prefill"]
    integers = [spec.name for spec in program.inputs() if spec.dtype == "int64"]
    assert integers == ["input_ids", "attention_mask", "position_ids"]
    assert {weight.dtype for weight in program.weights.values()} == {"float32"}
    expands = [node for node in program.graph.nodes if node.op == "Expand"]
    assert expands
    assert all(isinstance(node.inputs[1], gs.Constant) or node.inputs[1].inputs for node in expands)
