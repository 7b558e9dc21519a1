"""A sane CPU schedule for every function that no kernel of this folder stands for.

Elementwise blocks (gathers among them) that feed one elementwise block are inlined into it. What is
left is scheduled block by block:

- elementwise: the innermost loop in vectors, the others fused, on all threads when that pays;
- a reduction along the innermost axis of what it reads: one partial result a lane (rfactor), the
  lanes joined at the end, rows on all threads;
- any other reduction (a plain matrix product): lanes along the last spatial loop.

A block that fits none of them (extents unknown, or not a multiple of the lanes) keeps its loops,
and LLVM vectorizes what it can. A function that the schedule primitives refuse is left as it was.
"""

# `Schedule.get` is annotated as Optional, and its loops and blocks without their fields.
# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportOperatorIssue=false

import logging

from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.parallel_loop import PARALLEL_ELEMENTS

_log = logging.getLogger(__name__)
_SCHEDULED = "tirx.is_scheduled"


def schedule_rest(mod: IRModule, *, features: CpuFeatures, threads: int) -> IRModule:
    """Schedule every PrimFunc of `mod` that is not marked `tirx.is_scheduled`, and mark it.

    Args:
        mod: Functions as legalization and FuseTIR leave them; not changed.
        features: What the code may use.
        threads: Worker threads; with one, nothing is made parallel.

    Returns:
        A module that computes the same (reductions sum in another order).
    """
    scheduled = {
        global_var: _schedule(func, features, threads)
        for global_var, func in mod.functions_items()
        if isinstance(func, tirx.PrimFunc) and not func.attrs.get(_SCHEDULED, False)
    }
    result = mod.clone()
    for global_var, func in scheduled.items():
        result.update_func(global_var, func)
    return result


def _schedule(func: tirx.PrimFunc, features: CpuFeatures, threads: int) -> tirx.PrimFunc:
    schedule = s_tir.Schedule(IRModule({"main": func}), debug_mask="none")
    try:
        _inline(schedule)
        for block in _blocks(schedule):
            _schedule_block(schedule, block, lanes=features.lanes, is_parallel=threads > 1)
    except s_tir.ScheduleError as error:
        _log.debug("left unscheduled: %s", error)
        return func
    return schedule.mod["main"].with_attr(_SCHEDULED, True)


def _blocks(schedule: s_tir.Schedule) -> list[SBlockRV]:
    return schedule.get_child_blocks(schedule.get_sblock("root"))


def _inline(schedule: s_tir.Schedule) -> None:
    outputs = {schedule.get(b).name_hint for b in schedule.get_output_blocks("root")}
    for block in _blocks(schedule):
        if schedule.get(block).name_hint in outputs or not _is_elementwise(schedule, block):
            continue
        consumers = schedule.get_consumers(block)
        if len(consumers) != 1 or not _is_elementwise(schedule, consumers[0]):
            continue
        schedule.compute_inline(block)


def _is_elementwise(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    return all(v.iter_type == tirx.IterVar.DataPar for v in schedule.get(block).iter_vars)


def _schedule_block(
    schedule: s_tir.Schedule, block: SBlockRV, *, lanes: int, is_parallel: bool
) -> None:
    loops = schedule.get_loops(block)
    extents = [schedule.get(loop).extent for loop in loops]
    kinds = [v.iter_type for v in schedule.get(block).iter_vars]
    if not loops or len(kinds) != len(loops):
        return
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return
    elements = 1
    for extent in extents:
        elements *= int(extent)
    is_parallel = is_parallel and elements >= PARALLEL_ELEMENTS
    spatial = [
        loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar
    ]
    reduced = [
        loop for loop, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.DataPar
    ]
    if not reduced:
        _schedule_elementwise(schedule, spatial, lanes=lanes, is_parallel=is_parallel)
    elif not spatial or _has_contiguous_reads(schedule, block):
        _schedule_row_reduction(
            schedule, spatial, reduced=reduced, lanes=lanes, is_parallel=is_parallel
        )
    else:
        _schedule_reduction(
            schedule, block, spatial, reduced=reduced, lanes=lanes, is_parallel=is_parallel
        )


def _schedule_elementwise(
    schedule: s_tir.Schedule, spatial: list[LoopRV], *, lanes: int, is_parallel: bool
) -> None:
    *outer, inner = spatial
    if int(schedule.get(inner).extent) % lanes == 0:
        steps, vector = schedule.split(inner, [None, lanes])
        schedule.vectorize(vector)
        outer.append(steps)
    if outer and is_parallel:
        schedule.parallel(schedule.fuse(*outer))


def _has_contiguous_reads(schedule: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether the last index of every read is the innermost reduced variable."""
    statement = schedule.get(block)
    variable = [v.var for v in statement.iter_vars if v.iter_type == tirx.IterVar.CommReduce][-1]
    last = [region.region[-1].min for region in statement.reads]
    return all(index.same_as(variable) for index in last)


def _schedule_row_reduction(
    schedule: s_tir.Schedule,
    spatial: list[LoopRV],
    *,
    reduced: list[LoopRV],
    lanes: int,
    is_parallel: bool,
) -> None:
    inner = reduced[-1]
    if not spatial:
        spatial = [schedule.add_unit_loop(reduced[0])]
    row = schedule.fuse(*spatial)
    partial = first = None
    if int(schedule.get(inner).extent) % lanes == 0:
        _, vector = schedule.split(inner, [None, lanes])
        partial = schedule.rfactor(vector, factor_axis=-1)
        schedule.compute_at(partial, row)
        _, vector, first, *rest = schedule.get_loops(partial)
        schedule.reorder(first, *rest, vector)
        schedule.vectorize(vector)
    if is_parallel:
        schedule.parallel(row)
    # Last: `parallel` refuses a block whose initialization stands apart.
    if partial is not None:
        schedule.decompose_reduction(partial, first)


def _schedule_reduction(
    schedule: s_tir.Schedule,
    block: SBlockRV,
    spatial: list[LoopRV],
    *,
    reduced: list[LoopRV],
    lanes: int,
    is_parallel: bool,
) -> None:
    *outer, inner = spatial
    is_vector = int(schedule.get(inner).extent) % lanes == 0
    if is_vector:
        steps, vector = schedule.split(inner, [None, lanes])
        schedule.reorder(*outer, steps, *reduced, vector)
        schedule.vectorize(vector)
        outer.append(steps)
    if outer and is_parallel:
        schedule.parallel(schedule.fuse(*outer))
    if is_vector:
        schedule.decompose_reduction(block, reduced[0])
