"""The graph between the stages: one ONNX skeleton a phase, and weights beside it by reference.

Every tensor over 1 KiB is a parameter: it enters the skeleton as a graph input and stands in the
weight table as an expression (`compiler.contracts.weights`), so that a pass on a 110B model costs
what it costs on a 0.5B one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from compiler.contracts.weights import Weight

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

Phase = Literal["prefill", "decode"]
# Whose logits a graph gives: every row's, the last row's (be it padding), the last real token's.
LogitsOf = Literal["all", "last", "last_valid"]
LOGITS_OF: tuple[LogitsOf, ...] = ("all", "last", "last_valid")
PHASES: tuple[Phase, ...] = ("prefill", "decode")

# A larger tensor is a parameter, never a constant of the skeleton.
CONSTANT_BYTES = 1024
OPSET = 20
# The domain of fused operators; each is a model-local function of standard operators.
FUSED_DOMAIN = "graphlower"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: ONNX name, numpy dtype name, shape (a string is a symbolic length)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass
class Program:
    """One phase of a model as an ONNX skeleton.

    Attributes:
        phase: `prefill` (a window of tokens) or `decode` (one token).
        graph: The skeleton; its inputs are the activations, then the parameters.
        tokens: Tokens of one call: the prefill window P, or 1.
        context: Positions that the KV cache holds (C).
        layers: Number of decoder layers.
        weights: Parameter name -> expression over the checkpoint.
        checkpoint_tensors: Name and shape of every tensor of the checkpoint, for invariants.
        aliases: Output name -> the input that a target updates in place to make it.
        logits_of: Whose logits it gives.
        functions: The fused operators that the graph calls, as ONNX functions by name.
    """

    phase: Phase
    graph: "gs.Graph"
    tokens: int
    context: int
    layers: int
    weights: dict[str, Weight]
    checkpoint_tensors: Mapping[str, tuple[int, ...]]
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    logits_of: LogitsOf = "all"
    functions: dict[str, "onnx.FunctionProto"] = field(
        default_factory=dict[str, "onnx.FunctionProto"]
    )

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary as ONNX: the graph's objects are linked too deep to pickle."""
        return (_revive, self._parts())

    def copy(self) -> "Program":
        """A program that can be rewritten by itself; weights, being frozen, are shared."""
        return _revive(*self._parts())

    def _parts(
        self,
    ) -> tuple[
        Phase,
        bytes,
        int,
        int,
        int,
        dict[str, Weight],
        dict[str, tuple[int, ...]],
        dict[str, str],
        LogitsOf,
    ]:
        """What `_revive` makes an equal program of."""
        return (
            self.phase,
            self.model().SerializeToString(deterministic=True),
            self.tokens,
            self.context,
            self.layers,
            dict(self.weights),
            dict(self.checkpoint_tensors),
            dict(self.aliases),
            self.logits_of,
        )

    def inputs(self) -> tuple[TensorSpec, ...]:
        """The activations that a caller gives, in order."""
        return tuple(_spec(t) for t in self.graph.inputs if t.name not in self.weights)

    def parameters(self) -> tuple[str, ...]:
        """Names of the inputs that are weights, in order."""
        return tuple(t.name for t in self.graph.inputs if t.name in self.weights)

    def symbolic_inputs(self) -> tuple[TensorSpec, ...]:
        """Activations of which an axis has no length yet."""
        return tuple(
            spec for spec in self.inputs() if any(isinstance(axis, str) for axis in spec.shape)
        )

    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a caller gets, in order."""
        return tuple(_spec(tensor) for tensor in self.graph.outputs)

    def add_parameter(self, name: str, weight: Weight) -> "gs.Variable":
        """A new parameter of the skeleton, held in the weight table under `name`."""
        import onnx_graphsurgeon as gs

        from compiler.contracts.weights import DTYPES

        assert name not in self.weights, f"parameter {name} exists"
        dtype = DTYPES[weight.dtype]
        # graphsurgeon spells bfloat16, which numpy lacks, as the ONNX enumeration.
        spelled = dtype if dtype.kind != "V" else _onnx_enum(weight.dtype)
        variable = gs.Variable(name, dtype=spelled, shape=list(weight.shape))
        self.graph.inputs.append(variable)
        self.weights[name] = weight
        return variable

    def prune_parameters(self) -> None:
        """Drop the parameters that no node reads any more; keep activations in any case."""
        kept = [t for t in self.graph.inputs if t.name not in self.weights or t.outputs]
        self.graph.inputs = kept
        alive = {tensor.name for tensor in kept}
        self.weights = {name: weight for name, weight in self.weights.items() if name in alive}

    def model(self) -> "onnx.ModelProto":
        """The skeleton as ONNX: valid for the checker, deterministic, without weight bytes."""
        import onnx
        import onnx_graphsurgeon as gs

        proto = gs.export_onnx(self.graph, do_type_check=False)
        proto.producer_name = "graphlower"
        proto.producer_version = ""
        proto.ir_version = 10
        del proto.opset_import[:]
        proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
        del proto.functions[:]
        for name in sorted(self.functions):
            proto.functions.append(self.functions[name])
        for domain in sorted({function.domain for function in self.functions.values()}):
            proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        return proto


@dataclass
class ProgramSet:
    """The programs of one model, by phase; what both read is stored once."""

    programs: dict[Phase, Program]

    def __iter__(self) -> Iterator[Program]:
        return iter(self.programs.values())

    def stored_weights(self) -> dict[str, Weight]:
        """Expression key -> weight: what packaging writes, each once."""
        return {w.key: w for program in self for _, w in sorted(program.weights.items())}

    def stored_bytes(self, *, is_merged: bool = True) -> int:
        """Bytes of everything in `stored_weights`; of each phase's by itself where not merged."""
        sets = [self] if is_merged else [ProgramSet({one.phase: one}) for one in self]
        return sum(w.nbytes for one in sets for w in one.stored_weights().values())


def quiet_graphsurgeon() -> None:
    """Keep graphsurgeon from warning on standard output about optional packages of its own."""
    from onnx_graphsurgeon.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.ERROR


def tidy(graph: "gs.Graph") -> "gs.Graph":
    """Drop nodes that reach no output, and sort: `cleanup().toposort()` in linear time.

    graphsurgeon's cleanup looks each graph input up in a list of all tensors; a parameter is an
    input here, and 80 layers have a thousand. It leaves inputs alone, so it need not see them.
    """
    inputs = list(graph.inputs)
    graph.inputs = []
    graph.cleanup()
    graph.inputs = inputs
    return graph.toposort()


def _revive(
    phase: Phase,
    data: bytes,
    tokens: int,
    context: int,
    layers: int,
    weights: dict[str, Weight],
    checkpoint_tensors: dict[str, tuple[int, ...]],
    aliases: dict[str, str],
    logits_of: LogitsOf,
) -> Program:
    import onnx
    import onnx_graphsurgeon as gs

    quiet_graphsurgeon()
    model = onnx.load_from_string(data)
    functions = {function.name: function for function in model.functions}
    del model.functions[:]
    return Program(
        phase=phase,
        graph=gs.import_onnx(model),
        tokens=tokens,
        context=context,
        layers=layers,
        weights=weights,
        checkpoint_tensors=checkpoint_tensors,
        aliases=aliases,
        logits_of=logits_of,
        functions=functions,
    )


def _onnx_enum(dtype: str) -> int:
    import onnx

    return {"bfloat16": onnx.TensorProto.BFLOAT16}[dtype]


def _spec(tensor: "gs.Tensor") -> TensorSpec:
    import numpy as np
    import onnx

    dtype = tensor.dtype
    if isinstance(dtype, int):
        name = onnx.TensorProto.DataType.Name(dtype).lower()
    else:
        name = np.dtype(dtype).name
    return TensorSpec(tensor.name, name, tuple(tensor.shape or ()))
