"""onnxruntime on the export of an unmodified model with its cache as inputs and outputs."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from benchmarks.contenders.base import Contender


class ExportedOnnx(Contender):
    """The recipe of docs/configuration.md in fp32; int8 by dynamic quantization of its MatMuls."""

    modules: ClassVar = ("onnxruntime", "torch", "transformers")
    install: ClassVar = "it is a dependency of graphlower"
    dtypes: ClassVar = {"fp32": "fp32", "int8": "int8"}

    def make(self) -> None:
        """Export once; the int8 file is made of the fp32 one."""
        exported = self.job.folder.parent / "onnxruntime-export" / "model.onnx"
        if not (exported.parent / "complete").is_file():
            import torch
            from exported_models import export_quietly
            from transformers import AutoModelForCausalLM

            exported.parent.mkdir(parents=True, exist_ok=True)
            model = AutoModelForCausalLM.from_pretrained(self.job.checkpoint, dtype=torch.float32)
            export_quietly(model.eval(), exported)
            (exported.parent / "complete").touch()
        self.job.folder.mkdir(parents=True, exist_ok=True)
        if self.job.dtype == "int8" and not (self.job.folder / "complete").is_file():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                exported,
                self.job.folder / "model.onnx",
                weight_type=QuantType.QInt8,
                per_channel=True,
                use_external_data_format=True,
            )
            (self.job.folder / "complete").touch()

    def load(self) -> None:
        """Spinning of its threads is left as it is: that is how it is used."""
        from compiler.numerics.quiet_runtime import import_onnxruntime

        self._runtime = import_onnxruntime()
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        folder = self.job.folder
        if self.job.dtype == "fp32":
            folder = folder.parent / "onnxruntime-export"
        self._session = self._runtime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._names = [one.name for one in self._session.get_inputs()]
        self._cache_names = self._names[3:]
        shape = self._session.get_inputs()[3].shape
        self._empty = np.zeros((1, shape[1], 0, shape[3]), np.float32)
        self._length = 0

    def prefill(self, tokens: Sequence[int]) -> int:
        """From caches of no positions."""
        self._length = 0
        self._cache = [self._value(self._empty)] * len(self._cache_names)
        return self._run(tokens)

    def step(self, token: int) -> int:
        """The outputs of the last call are the inputs of this one, without a copy."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> int:
        count = len(tokens)
        positions = np.arange(self._length, self._length + count, dtype=np.int64)[None]
        given = (
            np.array([list(tokens)], np.int64),
            np.ones((1, self._length + count), np.int64),
            positions,
        )
        values = [*map(self._value, given), *self._cache]
        feeds = dict(zip(self._names, values, strict=True))
        logits, *self._cache = self._session.run_with_ort_values(None, feeds)
        self._length += count
        return int(logits.numpy()[0, -1].argmax())

    def _value(self, array: np.ndarray):
        return self._runtime.OrtValue.ortvalue_from_numpy(array)
