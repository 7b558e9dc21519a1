"""An exporter's .onnx file: weights by reference, a graph of opset 20 with names of provenance."""

from compiler.onnx_source.naming import name_graph
from compiler.onnx_source.positions import positions_as_input
from compiler.onnx_source.reading import OnnxSource, read_source
from compiler.onnx_source.roles import Roles, recognise_roles

__all__ = [
    "OnnxSource",
    "Roles",
    "name_graph",
    "positions_as_input",
    "read_source",
    "recognise_roles",
]
