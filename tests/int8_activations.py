"""Programs whose int8 linears read rounded activations, and the function that rounds them."""

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy

QUANTIZED_TOKENS = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedTokens (x) => (y)
    {{
        magnitude = Abs (x)
        last = Constant <value_ints: ints = [-1]> ()
        largest = ReduceMax <keepdims: int = 0> (magnitude, last)
        by_token = Reshape (largest, last)
        most = Constant <value_float: float = 127.0> ()
        raw = Div (by_token, most)
        smallest = Constant <value_float: float = 1.17549435e-38> ()
        one = Constant <value_float: float = 1.0> ()
        is_small = Less (raw, smallest)
        scale = Where (is_small, one, raw)
        tokens = Shape (scale)
        zero = ConstantOfShape <value: tensor = int8[1] {{0}}> (tokens)
        codes = QuantizeLinear <axis: int = 1> (x, scale, zero)
        y = DequantizeLinear <axis: int = 1> (codes, scale, zero)
    }}
    """
)


def round_activations(program: Program) -> int:
    """Give every int8 linear what QuantizedTokens leaves of its input; their number."""
    products = [
        node
        for node in program.graph.nodes
        if node.op == "MatMul" and _comes_from(node.inputs[1], "DequantizeLinear")
    ]
    rounded: dict[int, gs.Tensor] = {}
    for product in products:
        x = product.inputs[0]
        if id(x) not in rounded:
            rounded[id(x)] = gs.Variable(f"{x.name}:rounded", dtype=x.dtype, shape=x.shape)
            node = gs.Node(
                "QuantizedTokens",
                f"{product.name}/QuantizedTokens",
                inputs=[x],
                outputs=[rounded[id(x)]],
                domain=FUSED_DOMAIN,
            )
            program.graph.nodes.append(node)
        product.inputs[0] = rounded[id(x)]
    program.functions["QuantizedTokens"] = QUANTIZED_TOKENS
    tidy(program.graph)
    return len(products)


def _comes_from(tensor: gs.Tensor, op: str) -> bool:
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op == op:
            return True
        tensor = node.inputs[0]
    return False
