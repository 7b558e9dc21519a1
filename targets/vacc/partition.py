"""Program -> what the device runs and what stays with the host, by TVM's own means.

import with fused operators as composites, patterns find the others (FuseOpsByPattern),
neighbours become one partition (MergeCompositeFunctions), each partition a tile program
(RunCodegen with `relax.ext.vacc`), caches are written in place
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GlobalVar
from tvm.ir.expr import GenericConst
from tvm.relax.transform import FusionPattern

from compiler.contracts.program import Program
from compiler.relax import relax_from_program
from compiler.relax.cache_writes import join_cache_writes
from targets.vacc.canonical import canonical
from targets.vacc.codegen import Generated, Given, generate
from targets.vacc.device import DeviceProfile
from targets.vacc.fused import fused_converters, has_device_cache
from targets.vacc.in_place import in_place
from targets.vacc.patterns import Refusal, patterns
from targets.vacc.relax_types import bindings_of, op_name

CODEGEN = "relax.ext.vacc"
# The code generator is a global function of TVM's while RunCodegen runs.
_TVM = threading.Lock()


@dataclass(frozen=True)
class Partitioned:
    """One phase, taken apart.

    Attributes:
        module: The host's part, calling partitions by name.
        partitions: The device's parts, in order.
        host: Calls of operators that stayed with the host.
        refusals: What patterns matched and the device did not take.
    """

    module: tvm.IRModule
    partitions: tuple[Generated, ...]
    host: tuple[relax.Call, ...]
    refusals: tuple[Refusal, ...]


def partition(program: Program, profile: DeviceProfile) -> Partitioned:
    """Offload what the profile has composites for.

    Raises:
        TargetError: TVM's importer lacks an operator.
    """
    refusals: list[Refusal] = []
    imported = relax_from_program(
        _with_device_cache(program, profile), fused=fused_converters(profile)
    )
    module = tvm.transform.Sequential(
        [
            relax.transform.FuseOpsByPattern(
                list[FusionPattern | tuple](patterns(profile, refusals)),
                bind_constants=False,
                entry_functions=["main"],
            ),
            relax.transform.MergeCompositeFunctions(),
        ]
    )(canonical(imported))
    names = [tensor.name for tensor in program.graph.inputs]
    given, host = _calls(module, names, program)
    module = _with_names(module, {var: f"vacc_{program.phase}_{i}" for i, var in enumerate(given)})
    wanted = {f"vacc_{program.phase}_{i}": one for i, one in enumerate(given.values())}
    found: dict[str, Generated] = {}

    def codegen(functions: Sequence[relax.Function], *_options: object) -> list[object]:
        for function in functions:
            name = str(function.attrs["global_symbol"])
            found[name] = generate(function, wanted[name], profile, name=name)
        return []  # no runtime module: the bundle holds the programs, the runner calls them

    with _TVM:
        tvm.register_global_func(CODEGEN, codegen, override=True)
        module = relax.transform.RunCodegen({}, ["main"])(module)
    ordered = {name: found[name] for name in wanted}
    module = in_place(module, {name: one.written for name, one in ordered.items()})
    return Partitioned(module, tuple(ordered.values()), tuple(host), tuple(refusals))


def _with_device_cache(program: Program, profile: DeviceProfile) -> Program:
    """Caches as the device keeps them, and each update of an int8 one as one node."""
    if not has_device_cache(profile):
        return program
    program = join_cache_writes(program.copy())
    stored = cache_dtypes(program, profile)
    for tensor in (*program.graph.inputs, *program.graph.outputs):
        name = program.aliases.get(tensor.name, tensor.name)
        if name in stored:
            tensor.dtype = np.dtype(stored[name])
    return program


def cache_dtypes(program: Program, profile: DeviceProfile) -> dict[str, str]:
    """Cache -> what it is stored in: floats in float16 on the device, but for int8's scales."""
    given = {spec.name: spec.dtype for spec in program.inputs()}
    found = {name: given[name] for name in program.aliases.values()}
    if not has_device_cache(profile):
        return found
    scales = {f"{name}_scale" for name, dtype in found.items() if dtype == "int8"}
    return {
        name: "float16" if dtype == "float32" and name not in scales else dtype
        for name, dtype in found.items()
    }


def _calls(
    module: tvm.IRModule, names: Sequence[str], program: Program
) -> tuple[dict[GlobalVar, list[Given]], list[relax.Call]]:
    """Partition -> what main gives it; and the calls of operators that main keeps."""
    main = module["main"]
    params = dict(zip(main.params, names, strict=True))
    given: dict[GlobalVar, list[Given]] = {}
    host: list[relax.Call] = []
    constants: list[GenericConst] = []
    for binding in bindings_of(main):
        call = binding.value
        if not isinstance(call, relax.Call):
            continue
        if op_name(call):
            host.append(call)
        elif isinstance(call.op, GlobalVar):
            given[call.op] = [_given(one, params, program, constants) for one in call.args]
    return given, host


def _given(
    value: relax.Expr,
    params: dict[relax.Var, str],
    program: Program,
    constants: list[GenericConst],
) -> Given:
    if isinstance(value, GenericConst):
        constants.append(value)
        return Given(f"constant.{len(constants) - 1}", "weight")
    assert isinstance(value, relax.Var), f"{value} is no variable: main is in normal form"
    name = params.get(value)
    if name is None:
        return Given(f"host.{value.name}", "arg")
    if name in program.weights:
        return Given(name, "weight")
    return Given(name, "state" if name in program.aliases.values() else "arg")


def _with_names(module: tvm.IRModule, names: dict[GlobalVar, str]) -> tvm.IRModule:
    """Partitions under names that their host code can be called by."""
    for var, name in names.items():
        module.update_func(var, module[var].with_attr("global_symbol", name))
    return module
