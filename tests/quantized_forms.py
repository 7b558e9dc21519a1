"""Forms of quantized graphs, written by hand into a program behind `store-weights`.

The quantizing pass writes them, too; here they are for what reads such graphs.
"""

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from compiler.contracts.weights import Weight, concat, quantize, scale
from compiler.numerics.quantized_weights import quantized_parts

QUANTIZED_TOKENS = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedTokens (x) => (y)
    {{
        size = Abs (x)
        axes = Constant <value_ints: ints = [0, 2]> ()
        largest = ReduceMax <keepdims: int = 0> (size, axes)
        codes = Constant <value: tensor = float {{127}}> ()
        scales = Div (largest, codes)
        zero = Constant <value: tensor = int8 {{0}}> ()
        shape = Shape (scales)
        zeros = Expand (zero, shape)
        narrow = QuantizeLinear <axis: int = 1> (x, scales, zeros)
        y = DequantizeLinear <axis: int = 1> (narrow, scales, zeros)
    }}
    """
)


def quantized(weight: Weight, *, bits: int, group: int) -> tuple[Weight, Weight]:
    """Codes and scales of what a parameter [out, in] of int8 codes was made of."""
    parts = [part.operands[0] for part in quantized_parts(weight)]
    made_of = parts[0] if len(parts) == 1 else concat(parts)
    return (
        quantize(made_of, axis=0, bits=bits, group=group),
        scale(made_of, axis=0, bits=bits, group=group),
    )


def set_groups(program: Program, *, bits: int, group: int) -> int:
    """DequantizeLinear -> Reshape, DequantizeLinear, Reshape; the number of linears."""
    count = 0
    for node in list(program.graph.nodes):
        if node.op != "DequantizeLinear":
            continue
        parameter, scales = node.inputs
        codes, wide = quantized(program.weights[parameter.name], bits=bits, group=group)
        program.weights[parameter.name], program.weights[scales.name] = codes, wide
        scales.shape = list(wide.shape)
        count += 1
        if group:
            rows = int(np.prod(wide.shape))
            outputs = list(node.outputs)
            flat = _node(program, "Reshape", f"{node.name}/codes", [parameter], [rows, group])
            flat_scales = _node(program, "Reshape", f"{node.name}/scales", [scales], [rows])
            node.inputs = [flat, flat_scales]
            node.outputs = [gs.Variable(f"{node.name}/groups")]
            whole = _node(program, "Reshape", f"{node.name}/whole", node.outputs, codes.shape)
            made = whole.inputs[0]
            made.outputs = outputs
    _finish(program)
    return count


def set_quantized_tokens(program: Program) -> int:
    """x of each linear with int8 codes <- QuantizedTokens(x), one for each x; their number."""
    made: dict[str, gs.Tensor] = {}
    for node in list(program.graph.nodes):
        if node.op != "MatMul" or not node.inputs[1].inputs:
            continue
        turned = node.inputs[1].inputs[0]
        if turned.op != "Transpose" or not turned.inputs[0].inputs:
            continue
        if turned.inputs[0].inputs[0].op != "DequantizeLinear":
            continue
        x = node.inputs[0]
        if x.name not in made:
            made[x.name] = gs.Variable(f"{x.name}/rounded")
            program.graph.nodes.append(
                gs.Node(
                    QUANTIZED_TOKENS.name,
                    f"{x.name}/rounded",
                    {},
                    [x],
                    [made[x.name]],
                    domain=FUSED_DOMAIN,
                )
            )
        node.inputs = [made[x.name], node.inputs[1]]
    program.functions[QUANTIZED_TOKENS.name] = QUANTIZED_TOKENS
    _finish(program)
    return len(made)


def set_int8_table(program: Program) -> None:
    """Gather(E, ids) -> Mul(Cast(Gather(Eq, ids)), Unsqueeze(Gather(scales, ids), -1))."""
    table = next(t for t in program.graph.inputs if t.name == "model.embed_tokens.weight")
    (node,) = table.outputs
    ids, rows = node.inputs[1], node.outputs[0]
    made_of = program.weights[table.name]
    program.weights[table.name] = quantize(made_of, axis=0)
    table.dtype = np.dtype(np.int8)
    scales = program.add_parameter(f"{table.name}_scale", scale(made_of, axis=0))
    node.outputs = [gs.Variable(f"{node.name}/codes")]
    wide, of_rows, column = (gs.Variable(f"{node.name}/{n}") for n in ("wide", "scales", "column"))
    last = gs.Constant(f"{node.name}/last", np.array([-1], np.int64))
    to = {"to": int(onnx.TensorProto.FLOAT)}
    program.graph.nodes += [
        gs.Node("Cast", wide.name, to, node.outputs, [wide]),
        gs.Node("Gather", of_rows.name, {}, [scales, ids], [of_rows]),
        gs.Node("Unsqueeze", column.name, {}, [of_rows, last], [column]),
        gs.Node("Mul", f"{node.name}/scaled", {}, [wide, column], [rows]),
    ]
    _finish(program)


def _node(
    program: Program, op: str, name: str, inputs: list[gs.Tensor], shape: object
) -> gs.Tensor:
    output = gs.Variable(name)
    constant = gs.Constant(f"{name}/shape", np.array(shape, np.int64))
    program.graph.nodes.append(gs.Node(op, name, {}, [*inputs, constant], [output]))
    return output


def _finish(program: Program) -> None:
    tidy(program.graph)
    program.prune_parameters()
    onnx.checker.check_model(program.model(), full_check=True)
