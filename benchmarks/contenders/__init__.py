"""Who takes part: a file each, all with the interface of `benchmarks.contenders.base`."""

import importlib
from collections.abc import Mapping

from benchmarks.contenders.base import Contender

__all__ = ["CONTENDERS", "load_contender"]

# In the order of the tables; `peers.py --only` takes these names.
CONTENDERS: Mapping[str, str] = {
    "ours": "benchmarks.contenders.ours:Ours",
    "torch": "benchmarks.contenders.eager_torch:EagerTorch",
    "onnxruntime": "benchmarks.contenders.exported_onnx:ExportedOnnx",
    "onnxruntime-genai": "benchmarks.contenders.built_genai:BuiltGenai",
    "openvino": "benchmarks.contenders.stateful_openvino:StatefulOpenvino",
    "llama.cpp": "benchmarks.contenders.llama_gguf:LlamaGguf",
}


def load_contender(name: str) -> type[Contender]:
    """The class of a contender; its runtime is imported when it is used."""
    module, _, attribute = CONTENDERS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    assert issubclass(kind, Contender), f"{CONTENDERS[name]} is no contender"
    return kind
