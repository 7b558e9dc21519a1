"""What can be said of a tile program before it runs."""

from collections.abc import Mapping, Sequence

from compiler.contracts.errors import TargetError
from targets.vacc.tile_ops import TILE_OPS
from targets.vacc.tile_program import (
    Compute,
    Kernel,
    Load,
    Meet,
    Scalar,
    Statement,
    Store,
    Tensor,
    TileProgram,
    View,
)


def check_tiles(program: TileProgram, *, where: str) -> None:
    """What can be said before a run: names, dtypes, and the size of the chip.

    Raises:
        TargetError: With the kernel's name.
    """
    for kernel in program.kernels:
        if kernel.onchip_bytes > program.onchip_bytes:
            raise TargetError(
                f"its buffers take {kernel.onchip_bytes} bytes, the chip holds "
                f"{program.onchip_bytes}",
                where=f"{where}: {kernel.name}",
            )
        _check_body(kernel, kernel.body, where)
    views = {step.name: step.tensor for step in program.steps if isinstance(step, View)}
    known = {**program.memory, **views}
    for meet in program.meets:
        _check_meet(meet, known, f"{where}: {meet.module}")
    for run in program.runs:
        strange = [name for name in (*run.arguments, *run.results) if name not in known]
        if run.kernel not in program.kernel_of or strange:
            said = ", ".join(strange) or run.kernel
            raise TargetError(f"there is no {said}", where=f"{where}: {run.module}")


def _check_meet(meet: Meet, known: Mapping[str, Tensor], place: str) -> None:
    """The result is one rank's tensor, or `ways` of them along the last axis."""
    strange = [name for name in (meet.argument, meet.result) if name not in known]
    if strange:
        raise TargetError(f"there is no {', '.join(strange)}", where=place)
    given, found = known[meet.argument], known[meet.result]
    times = meet.ways if meet.collective == "all_gather" else 1
    wanted = (*given.shape[:-1], given.shape[-1] * times)
    if (found.dtype, found.shape) != (given.dtype, wanted):
        said = f"{meet.collective} of {given.type_text} by {meet.ways} ranks"
        raise TargetError(f"{said} is not {found.type_text}", where=place)


def _check_body(kernel: Kernel, body: Sequence[Statement], where: str) -> None:
    types = {one.name: one.dtype for one in (*kernel.inputs, *kernel.outputs)}
    buffers = {one.name: one.dtype for one in kernel.buffers}
    for one in body:
        match one:
            case Scalar(_, source):
                missing, is_wrong = {source} - set(types), types.get(source) != "i64"
            case Load(buffer, source, _, rows):
                missing = ({source} - set(types)) | ({buffer, rows} - set(buffers) - {""})
                is_wrong = types.get(source) != buffers.get(buffer)
            case Store(target, _, buffer):
                missing, is_wrong = ({target} - set(types)) | ({buffer} - set(buffers)), False
            case Compute(op, outputs, inputs, _):
                missing = ({op} - set(TILE_OPS)) | ({*outputs, *inputs} - set(buffers))
                is_wrong = False
            case _:
                missing, is_wrong = set[str](), False
                _check_body(kernel, one.body, where)
        if missing or is_wrong:
            said = f"there is no {', '.join(sorted(missing))}" if missing else "dtypes differ"
            raise TargetError(f"{said} in {one}", where=f"{where}: {kernel.name}")
