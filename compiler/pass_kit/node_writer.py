"""Writes the nodes of a generated graph, named as the trace names them, spelled as options say."""

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import quiet_graphsurgeon
from compiler.contracts.weights import DTYPES, Weight, cast, source, transpose
from compiler.pass_kit.block_options import BlockOptions

Operand = gs.Tensor | np.ndarray

# How often an Identity follows a node, where a block has them.
_IDENTITIES = 0.12


class NodeWriter:
    """A graph that is being written.

    Attributes:
        graph: The graph so far.
        weights: Parameter name -> expression, for `Program.weights`.
        checkpoint: Checkpoint tensor -> its expression, which holds shape and dtype.
    """

    def __init__(self, options: BlockOptions) -> None:
        quiet_graphsurgeon()
        self.graph = gs.Graph(name="main")
        self.weights: dict[str, Weight] = {}
        self.checkpoint: dict[str, Weight] = {}
        self._options = options
        self._seen: Counter[str] = Counter()
        self._random = random.Random(options.seed)

    def node(
        self,
        op: str,
        path: str,
        *inputs: Operand,
        attrs: dict[str, object] | None = None,
        output: gs.Variable | None = None,
    ) -> gs.Variable:
        """Append `path/op` (numbered from the second on) and return its one output.

        Args:
            op: Operator of the default domain.
            path: Module path.
            inputs: Tensors, and arrays, which become constants of this node.
            attrs: Its attributes.
            output: A tensor that it makes, in place of one of its own name.
        """
        stem = f"{path}/{op}" if path else op
        name = f"{stem}_{self._seen[stem]}" if self._seen[stem] else stem
        self._seen[stem] += 1
        tensors = [
            gs.Constant(f"{name}.{index}", value) if isinstance(value, np.ndarray) else value
            for index, value in enumerate(inputs)
        ]
        made = gs.Variable(name) if output is None else output
        self.graph.nodes.append(
            gs.Node(op=op, name=name, attrs=attrs or {}, inputs=tensors, outputs=[made])
        )
        is_left_alone = op == "Identity" or output is not None or not self._options.has_identities
        if is_left_alone or self._random.random() >= _IDENTITIES:
            return made
        return self.node("Identity", path, made)

    def commutative(self, op: str, path: str, first: Operand, second: Operand) -> gs.Variable:
        """A node whose two operands may stand in either order."""
        swap = self._options.is_swapped and self._random.random() < 0.5
        operands = (second, first) if swap else (first, second)
        return self.node(op, path, *operands)

    def integers(self, path: str, *values: int) -> Operand:
        """A list of integers: a constant, or as exporters leave it, a node over constants."""
        whole = np.array(values, np.int64)
        if not self._options.has_computed_shapes:
            return whole
        if len(values) == 1:
            minus_one = np.array([-1], np.int64)
            return self.node("Reshape", path, whole.reshape(()), minus_one)
        return self.node("Concat", path, *whole.reshape(-1, 1), attrs={"axis": 0})

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> gs.Variable:
        """An activation that the caller gives."""
        tensor = gs.Variable(name, dtype=np.dtype(dtype), shape=list(shape))
        self.graph.inputs.append(tensor)
        return tensor

    def output(self, name: str, shape: Sequence[int | str]) -> gs.Variable:
        """A float32 tensor that the caller gets."""
        tensor = gs.Variable(name, dtype=np.dtype(np.float32), shape=list(shape))
        self.graph.outputs.append(tensor)
        return tensor

    def parameter(
        self, name: str, shape: tuple[int, ...], *, dtype: str = "", tensor: str = ""
    ) -> gs.Variable:
        """A parameter with the shape that the checkpoint has it in, read as float32.

        Args:
            name: Of the parameter.
            shape: Of the checkpoint's tensor.
            dtype: Where it is int8, which is read as it is.
            tensor: The checkpoint's tensor, if that is not `name`.
        """
        stored = source(tensor or name, shape, dtype or self._options.dtype)
        self.checkpoint[tensor or name] = stored
        return self._bind(name, stored if dtype else cast(stored, "float32"))

    def matrix(
        self, name: str, outputs: int, inputs: int, *, dtype: str = "", tensor: str = ""
    ) -> gs.Variable:
        """A linear's weight [in, out], which the checkpoint holds as [out, in]."""
        stored = source(tensor or name, (outputs, inputs), dtype or self._options.dtype)
        self.checkpoint[tensor or name] = stored
        return self._bind(name, transpose(stored if dtype else cast(stored, "float32")))

    def _bind(self, name: str, weight: Weight) -> gs.Variable:
        variable = gs.Variable(name, dtype=DTYPES[weight.dtype], shape=list(weight.shape))
        self.weights[name] = weight
        return variable
