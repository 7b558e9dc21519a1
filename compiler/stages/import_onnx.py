"""An exporter's .onnx file -> ProgramSet, with the signature and names of a traced model.

    node_linear_3, val_71, past_0_1 of a file
 -> model.layers.3.self_attn.q_proj/MatMul, ....q_proj.weight, past_key_values.0.value

The file's own names are not relied on. Weights are located and not read; what a graph's arithmetic
is stays as the file has it, for the passes to match. What the model is (layers, heads, vocabulary)
is read off the graph; config.json beside the file, where there is one, names the model alone.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_graphsurgeon as gs

from compiler.checkpoints import read_json_object
from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import Phase, Program, ProgramSet, tidy
from compiler.contracts.weights import CheckpointRef, StoredTensor, source, transpose
from compiler.hashing import remembered_sha256
from compiler.numerics.probe import ProbeModel, probe_lengths, random_rows
from compiler.onnx_source import (
    OnnxSource,
    Roles,
    name_graph,
    positions_as_input,
    read_source,
    recognise_roles,
)

# Module -> what its (outputs, inputs) are as wide as; heads keep their width.
_MODULES = {
    "model.embed_tokens": ("vocabulary", "hidden"),
    "lm_head": ("vocabulary", "hidden"),
    "model.norm": ("hidden",),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("heads", "hidden"),
    "self_attn.v_proj": ("heads", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
_LAYER = re.compile(r"^model\.layers\.\d+\.")
_PROBE_HIDDEN, _PROBE_INNER = 24, 40
CONFIG_FILE = "config.json"
# The name of the model where no config.json has one.
MODEL_TYPE = "onnx"


@dataclass(frozen=True)
class _Named:
    """A graph under its final names, and what each parameter reads."""

    source: OnnxSource
    roles: Roles
    parameters: Mapping[str, tuple[str, StoredTensor]]


def onnx_file(reference: str, base: Path) -> Path:
    """The file that `frontend.checkpoint` names: an .onnx, or a folder that holds one.

    Raises:
        CheckpointError: There is none, or the folder holds several.
    """
    path = base / Path(reference).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.onnx"))
        if len(files) == 1:
            return files[0]
        names = ", ".join(file.name for file in files) or "no .onnx file"
        raise CheckpointError(
            f"the folder holds {names}",
            where=str(path),
            hint="name one .onnx file in frontend.checkpoint",
            code="no-file",
        )
    if not path.is_file():
        raise CheckpointError(
            "there is no such file",
            where=str(path),
            hint="name the .onnx file, relative to the YAML",
            code="no-file",
        )
    if path.suffix != ".onnx":
        raise CheckpointError(
            f"{path.name} is no .onnx file",
            where=str(path),
            hint="write `type: huggingface` for a checkpoint",
            code="reference",
        )
    return path


def locate_onnx(path: Path, *, window: int, is_hashed: bool = True) -> CheckpointRef:
    """The file's weights by their Hugging Face names, and what model it holds.

    Args:
        path: The .onnx file.
        window: Prefill window P.
        is_hashed: Without it no weight is read, and the digest is empty.

    Raises:
        CheckpointError: The file is damaged, or holds no decoder that is taken.
    """
    try:
        named = _named(path, tokens=window)
        digest = _digest(named.source.files) if is_hashed else ""
        tensors = dict(named.parameters.values())
        return CheckpointRef(path.parent, _config(named), tensors, digest)
    except OSError as e:
        raise CheckpointError(
            f"the model cannot be read: {e.strerror or e}",
            where=str(e.filename or path),
            hint="check the file and its permissions",
            code="unreadable",
        ) from e


def import_onnx(
    path: Path, checkpoint: CheckpointRef, *, window: int, context: int | None
) -> ProgramSet:
    """The two programs of a file, as `trace` gives those of a checkpoint.

    Args:
        path: The .onnx file.
        checkpoint: As `locate_onnx` gave it.
        window: Prefill window P.
        context: KV cache positions C; None imports prefill alone.

    Raises:
        CheckpointError: As `locate_onnx`; or the file fixes the number of tokens.
    """
    phases: dict[Phase, int] = {"prefill": window}
    if context is not None:
        phases["decode"] = 1
    return ProgramSet(
        {
            phase: _program(path, checkpoint, phase, tokens=tokens, context=context or window)
            for phase, tokens in phases.items()
        }
    )


def probe_onnx(path: Path, *, window: int, context: int | None) -> ProbeModel:
    """The file's graphs at a small residual width, vocabulary and MLP, with random weights.

    Heads keep their number and width, which constants of the graph spell; every node, constant and
    name is the file's. A graph with other weights than a decoder's keeps all its widths.

    Args:
        path: The .onnx file.
        window: Prefill window of the model.
        context: KV cache positions of the model; None without decode.
    """
    named = _named(path, tokens=window)
    lengths = (window, context) if named.source.is_fixed else probe_lengths(window, context)
    shapes = _probe_shapes(named)
    tensors = {name: replace(one, shape=shapes[name]) for name, one in named.parameters.values()}
    checkpoint = CheckpointRef(path.parent, {}, tensors, digest="probe")
    programs = import_onnx(path, checkpoint, window=lengths[0], context=lengths[1])
    (vocabulary, _) = shapes["model.embed_tokens.weight"]
    for program in programs:
        logits = program.graph.outputs[0]
        logits.shape = [*logits.shape[:-1], _head_width(program)]
    return ProbeModel(programs, random_rows(tensors), vocabulary)


def _head_width(program: Program) -> int:
    return program.weights["lm_head.weight"].shape[1]


def _probe_shapes(named: _Named) -> dict[str, tuple[int, ...]]:
    """Shapes of the probe's tensors: as they are, but for the widths that no constant spells."""
    config = _config(named)
    stored = dict(named.parameters.values())
    shapes = {name: one.shape for name, one in stored.items()}
    known = {f"{module}.{kind}" for module in _MODULES for kind in ("weight", "bias")}
    names = {_LAYER.sub("", name) for name in shapes}
    if not names <= known:
        return shapes
    hidden, inner, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    assert isinstance(vocabulary, int), "read off the logits"
    cut = {"hidden": _PROBE_HIDDEN, "inner": _PROBE_INNER, "vocabulary": 32 + vocabulary % 16}
    sizes = {"hidden": hidden, "inner": inner, "vocabulary": vocabulary}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        axes = _MODULES[_LAYER.sub("", name).rpartition(".")[0]]
        out, into = ((*axes, axes[-1]) if len(axes) == 1 else axes)[:2]
        is_turned = _is_turned(named, name)
        order = (out, into) if is_turned or name == "model.embed_tokens.weight" else (into, out)
        spelled = order if len(shape) == 2 else (out,)
        found[name] = tuple(
            min(cut[kind], size) if kind in cut and sizes[kind] == size else size
            for kind, size in zip(spelled, shape, strict=True)
        )
    return found


def _is_turned(named: _Named, name: str) -> bool:
    """Whether a linear reads its weight through a Transpose."""
    module = name.rpartition(".")[0]
    return any(node.name == f"{module}/Transpose" for node in named.source.graph.nodes)


def _named(path: Path, *, tokens: int) -> _Named:
    read = read_source(path, tokens=tokens)
    positions = positions_as_input(read.graph, read.signature, tokens=tokens, path=path)
    tidy(read.graph)
    roles = recognise_roles(read.graph, read.signature, read.parameters, path)
    return _Named(read, roles, name_graph(read, roles, positions))


def _program(
    path: Path, checkpoint: CheckpointRef, phase: Phase, *, tokens: int, context: int
) -> Program:
    named = _named(path, tokens=tokens)
    for tensor in named.source.graph.inputs:
        if tensor.name in named.parameters:
            tensor.shape = list(checkpoint.tensors[named.parameters[tensor.name][0]].shape)
    program = Program(
        phase=phase,
        graph=named.source.graph,
        tokens=tokens,
        context=context,
        layers=len(named.roles.layers),
        weights={
            name: source(tensor, checkpoint.tensors[tensor].shape, stored.dtype)
            for name, (tensor, stored) in named.parameters.items()
        },
        checkpoint_tensors={name: one.shape for name, one in checkpoint.tensors.items()},
    )
    _fold_transposes(program)
    tidy(program.graph)
    program.prune_parameters()
    return program


def _fold_transposes(program: Program) -> None:
    """A Transpose of a weight moves into its expression, as in a traced model."""
    for node in [node for node in program.graph.nodes if node.op == "Transpose"]:
        parameter = node.inputs[0]
        weight = program.weights.get(parameter.name)
        if weight is None or node.attrs.get("perm") != [1, 0] or len(parameter.outputs) != 1:
            continue
        program.weights[parameter.name] = transpose(weight)
        parameter.shape = list(weight.shape[::-1])
        turned = node.outputs[0]
        for reader in list(turned.outputs):
            reader.inputs = [parameter if tensor is turned else tensor for tensor in reader.inputs]
        node.inputs.clear()
        node.outputs.clear()


def _config(named: _Named) -> dict[str, object]:
    """What the graph says of the model, under the keys of config.json."""
    beside = named.source.path.parent / CONFIG_FILE
    declared = read_json_object(beside) if beside.is_file() else {}
    layers = named.roles.layers
    _, kv_heads, _, head_dim = layers[0].key.past.shape
    queries, hidden = _width(named, "model.layers.0.self_attn.q_proj")
    model_type, architectures = declared.get("model_type"), declared.get("architectures")
    return {
        "model_type": model_type if isinstance(model_type, str) else MODEL_TYPE,
        "architectures": architectures if isinstance(architectures, list) else None,
        "num_hidden_layers": len(layers),
        "hidden_size": hidden,
        "intermediate_size": _width(named, "model.layers.0.mlp.gate_proj")[0],
        "num_attention_heads": queries // head_dim,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": named.source.signature.logits.shape[-1],
    }


def _width(named: _Named, module: str) -> tuple[int, int]:
    """(outputs, inputs) of a linear, whichever way its weight lies."""
    stored = named.parameters[f"{module}.weight"][1].shape
    node = next(n for n in named.source.graph.nodes if n.name == f"{module}/MatMul")
    is_turned = isinstance(node.inputs[1], gs.Variable) and bool(node.inputs[1].inputs)
    return (stored[0], stored[1]) if is_turned else (stored[1], stored[0])


def _digest(files: tuple[Path, ...]) -> str:
    """sha256 over the names and contents of the .onnx and its data files."""
    folder = files[0].parent
    lines = [
        f"{remembered_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
