"""Our bundles, built by the command line and run as `python -m compiler run` runs them."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.contenders.base import Contender

_ROOT = Path(__file__).parents[2]
_SOURCES = ("compiler", "passes", "targets", "models")
_QUANTIZED = {"int8": "w8a16", "w8a8": "w8a8"}


class Ours(Contender):
    """A bundle of one window and one context."""

    dtypes: ClassVar = {"fp32": "fp32", "bf16": "bf16", "int8": "int8", "w8a8": "int8"}

    def make(self) -> None:
        """Build it, under the digest of our own sources: other kernels are another bundle."""
        if (self._bundle() / "manifest.json").is_file():
            return
        self.job.folder.mkdir(parents=True, exist_ok=True)
        yaml = self.job.folder / "model.yaml"
        yaml.write_text(json.dumps(self._config(), indent=2), encoding="utf-8")
        bundle = str(self._bundle())
        command = [sys.executable, "-m", "compiler", "build", str(yaml), "-o", bundle]
        subprocess.run(command, check=True, cwd=_ROOT, stdout=sys.stderr)

    def load(self) -> None:
        """In the lean process."""
        from compiler.workflows.run import open_session

        self._runner = open_session(self._bundle(), threads=self.job.threads).runner

    def prefill(self, tokens: Sequence[int]) -> int:
        """A window, padded where the prompt is shorter."""
        self._runner.rewind(0)
        return int(self._runner.extend(tokens).argmax())

    def step(self, token: int) -> int:
        """A call of the decode graph."""
        return int(self._runner.extend([token]).argmax())

    def _bundle(self) -> Path:
        hashed = hashlib.sha256()
        for package in _SOURCES:
            for path in sorted((_ROOT / package).rglob("*.py")):
                hashed.update(path.read_bytes())
        return self.job.folder / f"bundle-{hashed.hexdigest()[:12]}"

    def _config(self) -> dict[str, object]:
        job = self.job
        frontend: dict[str, object] = {
            "type": "huggingface",
            "checkpoint": str(job.checkpoint.resolve()),
            "shape": {"input_ids": [[job.window], [job.context]]},
        }
        kind = _QUANTIZED.get(job.dtype)
        if kind is not None:
            frontend["quantize"] = {"type": kind, "include": ["lm_head"]}
        return {
            "name": f"benchmark-{job.dtype}",
            "frontend": frontend,
            "backend": {
                "type": "tvm_llvm",
                "dtype": "int8" if kind else job.dtype,
                "compile": {"threads": job.threads},
            },
            "verify": "structure",
            "workspace": {"path": str(job.folder.resolve())},
        }
