"""onnxruntime-genai, on what its own model builder makes of the checkpoint."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from benchmarks.contenders.base import Contender
from benchmarks.optional import HOW, optional


class BuiltGenai(Contender):
    """Its builder's graph: fused attention on a cache of fixed length, weights in MatMulNBits."""

    modules: ClassVar = ("onnxruntime_genai", "onnx_ir")
    install: ClassVar = HOW
    dtypes: ClassVar = {"fp32": "fp32", "int8": "int8", "int4": "int4"}

    def make(self) -> None:
        """By the builder's command line, its defaults for a CPU."""
        if (self.job.folder / "complete").is_file():
            return
        self.job.folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "-i": self.job.checkpoint,
            "-o": self.job.folder,
            "-p": self.job.dtype,
            "-e": "cpu",
            "-c": self.job.folder / "cache",
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *words]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (self.job.folder / "complete").touch()

    def load(self) -> None:
        """Its threads are a key of the configuration that the builder wrote."""
        file = self.job.folder / "genai_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        options = config["model"]["decoder"].setdefault("session_options", {})
        options["intra_op_num_threads"] = self.job.threads
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        self._genai = optional("onnxruntime_genai")
        self._model = self._genai.Model(str(self.job.folder))

    def prefill(self, tokens: Sequence[int]) -> int:
        """A generator anew."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=self.job.context, do_sample=False)
        self._generator = self._genai.Generator(self._model, params)
        return self._run(tokens)

    def step(self, token: int) -> int:
        """A given token, where generating would take its own."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> int:
        self._generator.append_tokens(np.array([list(tokens)], np.int32))
        return int(np.asarray(self._generator.get_logits()).reshape(-1).argmax())
