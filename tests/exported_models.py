"""ONNX files as exporters write them, of a model as small as the traced `own-head-dim`.

`exports/<attention>_<opset>.onnx` is what the documentation's recipe wrote, without the values of
weights, so that fast tests need no torch; `exported` fills them in. A slow test exports anew and
compares. Weights are random, biases not zero, norms not one.
"""

import logging
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.numpy_helper

ROOT = Path(__file__).parents[1]
EXPORTS = Path(__file__).parent / "exports"
VARIANTS = ("eager_18", "sdpa_18", "eager_23", "sdpa_23")
# As the traced model `own-head-dim`.
HEAD_DIM, KV_HEADS, VOCABULARY, LAYERS = 16, 3, 80, 4
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def recipe() -> Callable[..., None]:
    """`export(model, path, opset=20)` of docs/configuration.md."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    space: dict[str, object] = {"__name__": "recipe"}
    exec(compile(code, "docs/configuration.md", "exec"), space)
    return SimpleNamespace(**space).export


def export_quietly(model: object, path: Path, opset: int = 20) -> Path:
    """The recipe's file; the exporter warns of what is its own."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recipe()(model, path, opset)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return path


def hollow(file: Path) -> onnx.ModelProto:
    """A fresh export as the stored ones are: weights are inputs, nothing but the graph is kept."""
    model = onnx.load(file)
    graph = model.graph
    tensors = list(graph.initializer)
    for field in (graph.initializer, graph.value_info, graph.metadata_props, model.metadata_props):
        del field[:]
    for tensor in tensors:
        array = onnx.numpy_helper.to_array(tensor)
        # The inverse frequencies are a value, the biases of a key head three times as long.
        if array.dtype == np.float32 and array.size > HEAD_DIM:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.producer_version = ""
    return model


def exported(variant: str) -> onnx.ModelProto:
    """The stored export of a variant, random weights as its initializers."""
    model = onnx.load(EXPORTS / f"{variant}.onnx")
    for value in list(model.graph.input):
        shape = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if 0 in shape:  # a symbolic length: tokens, a mask or a cache
            continue
        array = _drawn(value.name, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    return model


def write_export(path: Path, variant: str = "sdpa_18") -> Path:
    """That model as a file, weights inside."""
    onnx.save(exported(variant), path)
    return path


def _drawn(name: str, shape: list[int]) -> np.ndarray:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + np.float32(0.25) * drawn
    return drawn * np.float32(0.5 if len(shape) == 1 else shape[0] ** -0.5)


def main() -> None:
    """Write the stored exports anew."""
    import tempfile

    from transformers import Qwen2Config, Qwen2ForCausalLM

    for variant in VARIANTS:
        attention, opset = variant.split("_")
        config = Qwen2Config.from_dict({**SIZES, "attn_implementation": attention})
        module = Qwen2ForCausalLM(config)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            export_quietly(module, file, int(opset))
            onnx.save(hollow(file), EXPORTS / f"{variant}.onnx")


if __name__ == "__main__":
    main()
