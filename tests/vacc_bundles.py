"""Bundles of tiny models for the accelerator, each built once a session."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from built_bundles import TinyModel, in_this_process, write_tiny, write_words
from compiler_process import environment

from compiler.config import BuildConfig, load_config
from compiler.contracts.bundle import Bundle
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.build import build

# A vocabulary that is no multiple of 16, so that it is padded and cut.
TINY = TinyModel(vocabulary=120)


@dataclass(frozen=True)
class VaccModel:
    """A checkpoint and how it is built.

    Attributes:
        model: Its sizes.
        added: Passes after the default ones, each as JSON or its bare name.
        quantize: `frontend.quantize` as JSON; empty: none.
        compiled: `backend.compile`, as pairs.
        verify: What the build checks; with ranks `probe` runs them together.
    """

    model: TinyModel = TINY
    added: tuple[str, ...] = ()
    quantize: str = ""
    compiled: tuple[tuple[str, object], ...] = ()
    verify: str = "off"


FLOATS = VaccModel()
INT8 = VaccModel(quantize='{"type": "w8a16"}')


def _entry(text: str) -> object:
    return json.loads(text) if text.startswith("{") else text


def _set_quantize(tree: dict, section: dict, folder: Path, *, vocabulary: int) -> None:
    """The section, the dtype that goes with it, and what GPTQ is calibrated on."""
    tree["frontend"]["quantize"] = section
    tree["backend"]["dtype"] = "fp16" if section["type"].startswith("w16") else "int8"
    write_words(folder / "data.txt", vocabulary)
    tree["dataset"] = {"type": "text", "path": "data.txt", "nsamples": 2, "seqlen": 40}


class VaccBundles:
    """Never change what it returns.

    Attributes:
        folder: Where all of them lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bundles: dict[VaccModel, Path] = {}

    def checkpoint(self, model: TinyModel = TINY) -> Path:
        """The Hugging Face folder."""
        folder = self.folder / f"checkpoint-{model.variant or model.name}-{model.tied}"
        return folder if folder.exists() else write_tiny(folder, model)

    def yaml(self, path: Path, built: VaccModel = FLOATS) -> Path:
        """A YAML whose workspace lies beside it."""
        model = built.model
        tree = {
            "name": path.stem,
            "frontend": {
                "type": "huggingface",
                "checkpoint": str(self.checkpoint(model)),
                "shape": {"input_ids": [[model.window], [model.context]]},
                "model_kwargs": {"tp": model.ways, "align_qkv": model.align_qkv},
            },
            "backend": {"type": "vacc", "dtype": "fp16", "compile": dict(built.compiled)},
            "passes": {"add": [_entry(text) for text in built.added]},
            "verify": built.verify,
            "workspace": {"path": str(path.parent / "workspace")},
        }
        if built.quantize:
            _set_quantize(
                tree, json.loads(built.quantize), path.parent, vocabulary=model.vocabulary
            )
        path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    def config(self, path: Path, built: VaccModel = FLOATS) -> BuildConfig:
        """The checked configuration."""
        return load_config(self.yaml(path, built))

    def bundle(self, built: VaccModel = FLOATS) -> Bundle:
        """The built bundle."""
        if built not in self._bundles:
            folder = self.folder / f"built-{len(self._bundles)}"
            folder.mkdir()
            config = self.config(folder / "model.yaml", built)
            with in_this_process():
                self._bundles[built] = build(config).bundle
        return open_bundle(self._bundles[built])

    def python(self, code: str, *arguments: str | Path, env: Mapping[str, str]) -> str:
        """What a Python program prints in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment(**env),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout
