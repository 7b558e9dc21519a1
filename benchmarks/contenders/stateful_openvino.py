"""OpenVINO on the converted torch model, its cache kept inside as state."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from benchmarks.contenders.base import Contender
from benchmarks.optional import HOW, optional

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


class StatefulOpenvino(Contender):
    """fp32 and bf16 arithmetic on the same file; int8 weights by nncf, a scale a channel."""

    modules: ClassVar = ("openvino", "nncf", "torch", "transformers")
    install: ClassVar = HOW
    dtypes: ClassVar = {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}

    def make(self) -> None:
        """Convert once, and compress the weights of that."""
        openvino = optional("openvino")
        converted = self.job.folder.parent / "openvino-converted" / "model.xml"
        if not (converted.parent / "complete").is_file():
            converted.parent.mkdir(parents=True, exist_ok=True)
            openvino.save_model(self._converted(), converted, compress_to_fp16=False)
            (converted.parent / "complete").touch()
        if self.job.dtype == "int8" and not (self.job.folder / "complete").is_file():
            nncf = optional("nncf")
            self.job.folder.mkdir(parents=True, exist_ok=True)
            model = openvino.Core().read_model(converted)
            packed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
            openvino.save_model(packed, self.job.folder / "model.xml", compress_to_fp16=False)
            (self.job.folder / "complete").touch()

    def load(self) -> None:
        """Latency is what a single prompt asks for."""
        openvino = optional("openvino")
        folder = self.job.folder
        if self.job.dtype != "int8":
            folder = folder.parent / "openvino-converted"
        options = {
            "INFERENCE_NUM_THREADS": self.job.threads,
            "INFERENCE_PRECISION_HINT": _HINTS[self.job.dtype],
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
        self._request = compiled.create_infer_request()
        self._length = 0

    def prefill(self, tokens: Sequence[int]) -> int:
        """From an empty state."""
        self._request.reset_state()
        self._length = 0
        return self._run(tokens)

    def step(self, token: int) -> int:
        """The state grows by a token."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> int:
        count = len(tokens)
        positions = np.arange(self._length, self._length + count, dtype=np.int64)[None]
        mask = np.ones((1, self._length + count), np.int64)
        ids = np.array([list(tokens)], np.int64)
        self._request.infer({0: ids, 1: mask, 2: positions})
        self._length += count
        return int(self._request.get_output_tensor(0).data[0, -1].argmax())

    def _converted(self):
        """Logits of the last token; caches as inputs and outputs, then as state."""
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache
        from transformers.cache_utils import DynamicLayer

        openvino = optional("openvino")

        def filled(past) -> DynamicCache:
            # Its own way to be filled begins with a concatenation that cannot be converted.
            cache = DynamicCache()
            for keys, values in zip(past[::2], past[1::2], strict=True):
                layer = DynamicLayer()
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
                cache.layers.append(layer)
            return cache

        class LastLogits(torch.nn.Module):
            def __init__(self, model) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids, attention_mask, position_ids, *past):
                out = self.model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=filled(past),
                    use_cache=True,
                    logits_to_keep=1,
                )
                layers = out.past_key_values.layers
                return out.logits, *(one for layer in layers for one in (layer.keys, layer.values))

        model = AutoModelForCausalLM.from_pretrained(self.job.checkpoint, dtype=torch.float32)
        config = model.config
        head_dim = config.hidden_size // config.num_attention_heads
        cache = torch.zeros(1, config.num_key_value_heads, 7, head_dim)
        example = (
            torch.ones(1, 5, dtype=torch.long),
            torch.ones(1, 12, dtype=torch.long),
            torch.arange(7, 12)[None],
            *(cache.clone() for _ in range(2 * config.num_hidden_layers)),
        )
        with torch.no_grad():
            converted = openvino.convert_model(LastLogits(model.eval()), example_input=example)
        grows = openvino.PartialShape([1, -1])
        shape = openvino.PartialShape([1, config.num_key_value_heads, -1, head_dim])
        caches = converted.inputs[3:]
        shapes = dict.fromkeys(converted.inputs[:3], grows) | dict.fromkeys(caches, shape)
        converted.reshape(shapes)
        states: dict[str, str] = {}
        for index, (given, kept) in enumerate(zip(caches, converted.outputs[1:], strict=True)):
            states[f"past.{index}"] = f"present.{index}"
            given.get_tensor().set_names({f"past.{index}"})
            kept.get_tensor().set_names({f"present.{index}"})
        transformations = optional("openvino._offline_transformations")
        transformations.apply_make_stateful_transformation(converted, states)
        return converted
