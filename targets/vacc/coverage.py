"""How much of a phase runs on the device: of its operators, its float operations, its bytes.

The device's share is what the emulator executes: the walk over the tile programs of one call. The
host's is what its graph still holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from tvm import relax

from targets.vacc.cost_model import Cost, program_cost
from targets.vacc.partition import Partitioned
from targets.vacc.relax_types import dtype_of, op_name, shape_of, tensor_type

INDICES = "indices and positions are the host's"
_ITEM_BYTES: Mapping[str, int] = {"bool": 1, "int8": 1, "float16": 2, "float32": 4, "int64": 8}
_LAYOUT = frozenset(
    f"relax.{name}"
    for name in (
        "astype",
        "broadcast_to",
        "concat",
        "expand_dims",
        "permute_dims",
        "reshape",
        "split",
        "squeeze",
        "strided_slice",
        "take",
    )
)


@dataclass(frozen=True)
class HostNode:
    """An operator that stayed with the host.

    Attributes:
        operator: TVM's name.
        result: dtype and shape.
        reason: Why.
        flops: Float operations of a call.
        nbytes: Read and written in a call.
        is_fallback: Whether the device could have been meant to do it: it is not about indices.
    """

    operator: str
    result: str
    reason: str
    flops: int
    nbytes: int
    is_fallback: bool


@dataclass(frozen=True)
class Coverage:
    """One phase."""

    device_nodes: int
    device: Cost
    host: tuple[HostNode, ...]

    @property
    def fallbacks(self) -> tuple[HostNode, ...]:
        """What `strict` refuses."""
        return tuple(node for node in self.host if node.is_fallback)

    def facts(self) -> dict[str, object]:
        """As JSON."""
        flops, nbytes = (sum(getattr(n, key) for n in self.host) for key in ("flops", "nbytes"))
        counts: dict[tuple[str, str, str], int] = {}
        for node in self.host:
            key = (node.operator, node.result, node.reason)
            counts[key] = counts.get(key, 0) + 1
        return {
            "nodes": _facts(self.device_nodes, len(self.host)),
            "flops": _facts(self.device.flops, flops),
            "bytes": _facts(self.device.moved_bytes, nbytes),
            "host": [
                {"operator": operator, "result": result, "reason": reason, "count": count}
                for (operator, result, reason), count in counts.items()
            ],
        }


def coverage(partitioned: Partitioned, lengths: Mapping[str, int]) -> Coverage:
    """Of one call of the given lengths."""
    device = Cost()
    for part in partitioned.partitions:
        device = sum(program_cost(part.program, lengths).values(), device)
    reasons = {(one.operator, one.shape): one.reason for one in partitioned.refusals}
    host = tuple(_host_node(call, reasons) for call in partitioned.host)
    return Coverage(sum(part.nodes for part in partitioned.partitions), device, host)


def _host_node(call: relax.Call, reasons: Mapping[tuple[str, tuple[int, ...]], str]) -> HostNode:
    name = op_name(call)
    if tensor_type(call) is None:
        return HostNode(name, "no tensor", "it is about shapes", 0, 0, False)
    shape, dtype = shape_of(call), dtype_of(call)
    is_index = not dtype.startswith("float")
    reason = INDICES if is_index else reasons.get((name, shape), "no composite takes it")
    operands = [one for one in call.args if tensor_type(one) is not None]
    nbytes = sum(prod(shape_of(one)) * _ITEM_BYTES.get(dtype_of(one), 4) for one in operands)
    return HostNode(
        operator=name,
        result=f"{dtype}{list(shape)}",
        reason=reason,
        flops=0 if is_index else _flops(call, shape),
        nbytes=nbytes + prod(shape) * _ITEM_BYTES.get(dtype, 4),
        is_fallback=not is_index,
    )


def _flops(call: relax.Call, shape: Sequence[int]) -> int:
    name = op_name(call)
    if name == "relax.matmul":
        return 2 * prod(shape) * shape_of(call.args[0])[-1]
    return 0 if name in _LAYOUT else prod(shape)


def _share(device: int, host: int) -> float:
    return device / (device + host) if device + host else 1.0


def _facts(device: int, host: int) -> dict[str, object]:
    return {"device": device, "host": host, "share": _share(device, host)}
