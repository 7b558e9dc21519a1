"""The part of onnx-graphsurgeon 0.6.1 that this project uses; the package has no types of its own.

`inputs` and `outputs` take any sequence and keep a list that updates the other side's.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx

class Tensor:
    DYNAMIC: ClassVar[int]
    name: str
    # An int is an ONNX enumeration value: what numpy has no dtype for.
    dtype: np.dtype[Any] | int | None
    # Lengths, and names of symbolic axes, as the graph at hand has them; None where it has none.
    shape: Any
    @property
    def inputs(self) -> list[Node]: ...
    @inputs.setter
    def inputs(self, value: Sequence[Node]) -> None: ...
    @property
    def outputs(self) -> list[Node]: ...
    @outputs.setter
    def outputs(self, value: Sequence[Node]) -> None: ...
    def is_empty(self) -> bool: ...
    def i(self, tensor_idx: int = 0, producer_idx: int = 0) -> Tensor: ...
    def o(self, consumer_idx: int = 0, tensor_idx: int = 0) -> Tensor: ...
    def to_constant(
        self,
        values: np.ndarray,
        data_location: int | None = None,
        export_dtype: np.dtype[Any] | int | None = None,
    ) -> Constant: ...
    def to_variable(
        self, dtype: np.dtype[Any] | int | None = None, shape: Sequence[int | str] = ...
    ) -> Variable: ...

class Variable(Tensor):
    type: str
    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any] | type[np.generic] | int | None = None,
        shape: Sequence[int | str] | None = None,
        type: str = "tensor_type",
    ) -> None: ...
    @staticmethod
    def empty() -> Variable: ...
    def copy(self) -> Variable: ...

class Constant(Tensor):
    values: np.ndarray
    def __init__(
        self,
        name: str,
        values: np.ndarray,
        data_location: int | None = None,
        export_dtype: np.dtype[Any] | int | None = None,
    ) -> None: ...
    def copy(self) -> Constant: ...

class Node:
    op: str
    name: str
    # An attribute's type is its operator's.
    attrs: dict[str, Any]
    domain: str | None
    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        inputs: Sequence[Tensor] | None = None,
        outputs: Sequence[Tensor] | None = None,
        domain: str | None = None,
    ) -> None: ...
    @property
    def inputs(self) -> list[Tensor]: ...
    @inputs.setter
    def inputs(self, value: Sequence[Tensor]) -> None: ...
    @property
    def outputs(self) -> list[Tensor]: ...
    @outputs.setter
    def outputs(self, value: Sequence[Tensor]) -> None: ...
    def i(self, tensor_idx: int = 0, producer_idx: int = 0) -> Node: ...
    def o(self, consumer_idx: int = 0, tensor_idx: int = 0) -> Node: ...
    def subgraphs(self, recursive: bool = False) -> Iterator[Graph]: ...
    def copy(
        self,
        inputs: Sequence[Tensor] | None = None,
        outputs: Sequence[Tensor] | None = None,
        tensor_map: dict[str, Tensor] | None = None,
    ) -> Node: ...

class Graph:
    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    name: str
    doc_string: str
    opset: int
    def __init__(
        self,
        nodes: Sequence[Node] | None = None,
        inputs: Sequence[Tensor] | None = None,
        outputs: Sequence[Tensor] | None = None,
        name: str | None = None,
        doc_string: str | None = None,
        opset: int | None = None,
        import_domains: Sequence[onnx.OperatorSetIdProto] | None = None,
        producer_name: str | None = None,
        producer_version: str | None = None,
    ) -> None: ...
    def cleanup(
        self,
        remove_unused_node_outputs: bool = False,
        recurse_subgraphs: bool = True,
        remove_unused_graph_inputs: bool = False,
        recurse_functions: bool = True,
    ) -> Graph: ...
    def toposort(
        self,
        recurse_subgraphs: bool = True,
        recurse_functions: bool = True,
        mode: str = "full",
    ) -> Graph: ...
    def tensors(self, check_duplicates: bool = False) -> dict[str, Tensor]: ...
    def copy(self, tensor_map: dict[str, Tensor] | None = None) -> Graph: ...

def import_onnx(onnx_model: onnx.ModelProto) -> Graph: ...
def export_onnx(graph: Graph, do_type_check: bool = True) -> onnx.ModelProto: ...
