"""A partition -> its tile program: one run for each composite, one kernel for each shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tvm import relax

from compiler.contracts.provenance import layer_of
from targets.vacc.composites import device_dtype, lowering
from targets.vacc.device import DeviceProfile
from targets.vacc.lowering import Lowering
from targets.vacc.memory_plan import share_memory
from targets.vacc.patterns import PREFIX
from targets.vacc.relax_types import Body, bindings_of, dtype_of, result_of, shape_of
from targets.vacc.tile_program import (
    Argument,
    Kernel,
    Meet,
    Role,
    Run,
    Step,
    Tensor,
    TileProgram,
    View,
)

# What is joined in one product (`fuse-qkv`, `fuse-gate-up`), in order.
_JOINED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass(frozen=True)
class Given:
    """What the host gives for one parameter of a partition: a name that is provenance."""

    name: str
    role: Role


@dataclass(frozen=True)
class Generated:
    """One partition's program, and what the host must know of it.

    Attributes:
        program: What the device runs.
        results: dtype of each result as the host's graph has it (`float32`).
        written: For each result the argument that it is, written in place; -1 for a new tensor.
        nodes: Operators of the graph that it stands for.
    """

    program: TileProgram
    results: tuple[str, ...]
    written: tuple[int, ...]
    nodes: int


def generate(
    function: relax.Function, given: Sequence[Given], profile: DeviceProfile, *, name: str
) -> Generated:
    """The tile program of a partition that MergeCompositeFunctions has made."""
    writing = _Writing(function, given, profile)
    writing.write()
    outputs = writing.outputs()
    tensors, steps, results = share_memory(
        writing.tensors, writing.steps, [writing.names[var] for var in outputs]
    )
    arguments = tuple(
        Argument(one.role, Tensor(one.name, writing.dtypes[one.name], shape_of(param)))
        for one, param in zip(given, function.params, strict=True)
    )
    names = [one.name for one in given]
    program = TileProgram(
        name=name,
        onchip_bytes=profile.onchip_bytes,
        kernels=tuple(writing.kernels),
        arguments=arguments,
        tensors=tensors,
        steps=steps,
        results=results,
    )
    return Generated(
        program,
        results=tuple(dtype_of(var) for var in outputs),
        written=tuple(names.index(one) if one in names else -1 for one in results),
        nodes=writing.nodes,
    )


class _Writing:
    """The program so far; memory is named as steps make it."""

    def __init__(
        self, function: relax.Function, given: Sequence[Given], profile: DeviceProfile
    ) -> None:
        self.function, self.profile = function, profile
        self.names: dict[relax.Var, str] = {}
        self.dtypes: dict[str, str] = {}
        # Memory -> the module that made it.
        self.modules: dict[str, str] = {}
        for param, one in zip(function.params, given, strict=True):
            self.names[param] = one.name
            is_stored = one.role != "arg"
            self.dtypes[one.name] = device_dtype(param, is_stored=is_stored)
            self.modules[one.name] = one.name.rpartition(".")[0] if is_stored else one.name
        self.kernels: list[Kernel] = []
        self.tensors: list[Tensor] = []
        self.steps: list[Step] = []
        self.nodes = 0

    def write(self) -> None:
        """Every binding, in order."""
        composites: dict[relax.Var, relax.Function] = {}
        for binding in bindings_of(self.function):
            match binding.value:
                case relax.Function():
                    composites[binding.var] = binding.value
                case relax.Var():
                    self.names[binding.var] = self.names[binding.value]
                case relax.Call():
                    self._call(binding.var, composites[_variable(binding.value.op)], binding.value)
                case relax.Tuple():
                    pass  # what is returned

    def outputs(self) -> list[relax.Var]:
        """What the partition returns."""
        result = result_of(self.function)
        found = Body(self.function).behind(result)
        fields = found.fields if isinstance(found, relax.Tuple) else [result]
        return [_variable(one) for one in fields]

    def _call(self, var: relax.Var, composite: relax.Function, call: relax.Call) -> None:
        given = [self.names[_variable(argument)] for argument in call.args]
        found = lowering(composite, tuple(self.dtypes[name] for name in given), self.profile)
        arguments = tuple(given[index] for index in found.arguments)
        self.nodes += len(Body(composite).calls)
        if found.collective is not None:
            self._meet(var, found, arguments[0])
            return
        if found.kernel is None and found.written:
            self.names[var] = given[found.written[0]]
            return
        if found.kernel is None:
            self._view(var, arguments[0])
            return
        kind = str(composite.attrs["Composite"]).removeprefix(PREFIX)
        module = self._module(kind, found, given)
        kernel = self._kernel(found.kernel)
        results = tuple(given[index] for index in found.written)
        if not results:
            results = (self._new(var, kernel.outputs[0].dtype, module),)
        self.names[var] = results[0]
        self.steps.append(Run(kernel.name, module, arguments, results))

    def _new(self, var: relax.Var, dtype: str, module: str) -> str:
        """Memory for a result."""
        name = f"v{len(self.steps)}"
        self.tensors.append(Tensor(name, dtype, shape_of(var)))
        self.dtypes[name], self.modules[name] = dtype, module
        return name

    def _meet(self, var: relax.Var, found: Lowering, argument: str) -> None:
        """What ranks make together is still the work of the module that made their shares."""
        assert found.collective is not None, "ranks meet for a collective"
        module = self.modules[argument]
        result = self._new(var, self.dtypes[argument], module)
        self.names[var] = result
        self.steps.append(Meet(found.collective, module, found.ways, argument, result))

    def _view(self, var: relax.Var, source: str) -> None:
        name = f"v{len(self.steps)}"
        self.names[var] = name
        self.dtypes[name], self.modules[name] = self.dtypes[source], self.modules[source]
        self.steps.append(View(Tensor(name, self.dtypes[source], shape_of(var)), source))

    def _kernel(self, made: Kernel) -> Kernel:
        """The kernel that is there already, or this one under a name of its own."""
        for kernel in self.kernels:
            if replace(made, name=kernel.name) == kernel:
                return kernel
        count = sum(kernel.composite == made.composite for kernel in self.kernels)
        named = replace(made, name=f"{made.composite}_{count}")
        self.kernels.append(named)
        return named

    def _module(self, kind: str, found: Lowering, given: Sequence[str]) -> str:
        """Whose work a run is: names are provenance."""
        first = self.modules[given[found.arguments[0]]]
        match kind:
            case "linear" | "quantized_linear" | "head" | "rms_norm":
                return self.modules[given[found.arguments[1]]]
            case "embedding":
                return first
            case "cache_update":
                return given[found.written[0]]
            case "attention":
                return f"model.layers.{layer_of(given[1])}.self_attn"
            case "silu_mul":
                return f"{first.rpartition('.')[0]}.act"
            case "add":
                return f"{self.modules[given[found.arguments[1]]]}.residual"
            case "angles":
                assert found.kernel is not None, "angles are no view"
                return f"model.rotary_emb.{'cos' if 'cosine' in str(found.kernel.body) else 'sin'}"
        parent, _, last = first.rpartition(".")
        if last in _JOINED and found.part is not None:
            return f"{parent}.{_JOINED[last][found.part]}"
        return f"{first}.{kind}"


def _variable(value: relax.Expr) -> relax.Var:
    assert isinstance(value, relax.Var), f"{value} is no variable: partitions are in normal form"
    return value
