"""Tiny models with a tokenizer and a chat template, and their bundles, each built once a session.

A build starts processes that import torch and TVM anew; here it runs in the test's own process,
where they are loaded already, and models of one architecture are traced once. What processes are
for has tests of its own.
"""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pytest
from checkpoint_factory import change_config, write_checkpoint
from family_variants import write_variant

from compiler.config import DEFAULT_PASSES, BuildConfig, load_config
from compiler.contracts.program import ProgramSet
from compiler.contracts.weights import CheckpointRef
from compiler.workflows import build as build_workflow
from compiler.workflows import frontend as frontend_workflow
from compiler.workflows.build import BuildResult, build

Result = TypeVar("Result")

# One word a token: `t5` is the id 5.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} end "
    "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
ROLE_WORDS = ("system", "user", "assistant", "end")


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint of random weights and how it is built; equal ones are built once.

    Attributes:
        stored: dtype of the checkpoint.
        dtype: `backend.dtype`.
        context: None builds prefill alone.
        features: `backend.compile.features`; None leaves them to the machine.
        kept: `position` of insert-strided-slice; `all` leaves the slice out.
        added: Passes after the default ones.
        dropped: Passes of the default ones or the target's that are left out; with no others added.
        variant: One of `family_variants`, in place of the sizes here; empty: none.
        ways: `model_kwargs.tp`.
        align_qkv: `model_kwargs.align_qkv`.
        batch: `shape.batch`, with `model_kwargs.b2s`.
    """

    name: str = "tiny"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    intermediate: int = 96
    vocabulary: int = 128
    tied: bool = False
    stored: str = "float32"
    dtype: str = "fp32"
    window: int = 32
    context: int | None = 48
    features: tuple[str, ...] | None = None
    kept: Literal["all", "last", "last_valid"] = "last_valid"
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    variant: str = ""
    ways: int = 1
    align_qkv: bool = False
    batch: int = 1


TINY = TinyModel()


def write_tiny(folder: Path, model: TinyModel) -> Path:
    """The checkpoint's folder, with a tokenizer of one word a token."""
    if model.variant:
        write_variant(model.variant, folder, layers=model.layers, vocabulary=model.vocabulary)
    else:
        write_checkpoint(
            folder,
            hidden=model.hidden,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_dim=model.head_dim,
            intermediate=model.intermediate,
            vocabulary=model.vocabulary,
            tied=model.tied,
            dtype=model.stored,
        )
    # No end of text: generations are as long as a test asks for.
    change_config(folder, eos_token_id=None)
    (folder / "generation_config.json").write_text("{}\n", encoding="utf-8")
    write_word_tokenizer(folder, model.vocabulary)
    return folder


def write_word_tokenizer(folder: Path, vocabulary: int) -> None:
    """tokenizer.json and a chat template: words `t0`, `t1`, ... and, as the last ids, the roles."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = [f"t{index}" for index in range(vocabulary - len(ROLE_WORDS))]
    ids = {word: index for index, word in enumerate([*words, *ROLE_WORDS])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_words(path: Path, vocabulary: int) -> Path:
    """A text of 400 random words of `write_word_tokenizer`, to calibrate on."""
    words = np.random.default_rng(1).integers(0, vocabulary - len(ROLE_WORDS), 400)
    path.write_text(" ".join(f"t{word}" for word in words), encoding="utf-8")
    return path


def write_yaml(path: Path, model: TinyModel, checkpoint: Path) -> Path:
    """A YAML whose workspace is the folder `workspace` beside it."""
    compiled = {} if model.features is None else {"features": list(model.features)}
    tree = {
        "name": model.name,
        "frontend": {
            "type": "huggingface",
            "checkpoint": str(checkpoint),
            "shape": {
                "input_ids": [[model.window], [] if model.context is None else [model.context]],
                "batch": model.batch,
            },
            "model_kwargs": {
                "tp": model.ways,
                "align_qkv": model.align_qkv,
                "b2s": model.batch > 1,
            },
        },
        "backend": {"type": "tvm_llvm", "dtype": model.dtype, "compile": compiled},
        "passes": _passes(model),
        "verify": "probe" if _is_measured(model) else "structure",
        "workspace": {"path": str(path.parent / "workspace")},
    }
    path.write_text(json.dumps(tree, indent=2), encoding="utf-8")
    return path


def _is_measured(model: TinyModel) -> bool:
    """Plain models differ in sizes alone: that passes keep their numbers is tested on one of them.

    Another probe takes a trace of its own.
    """
    return replace(model, ways=1, batch=1) == TINY or bool(model.variant or model.added)


def _passes(model: TinyModel) -> object:
    if model.dropped:
        assert not model.added, "passes are dropped or added"
        assert model.kept == "last_valid", "passes are dropped or listed"
        return {"drop": list(model.dropped)}
    if model.kept == "last_valid":
        return [*DEFAULT_PASSES, *model.added] if model.added else None
    kept = [] if model.kept == "all" else [{"insert-strided-slice": {"position": model.kept}}]
    others = [name for name in DEFAULT_PASSES if name != "insert-strided-slice"]
    return [*others, *kept, *model.added]


@contextmanager
def in_this_process() -> Iterator[None]:
    """Builds inside start no process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontend_workflow, "run_isolated", _run_isolated)
        patch.setattr(build_workflow, "run_parallel", _run_parallel)
        yield


# Architecture and lengths -> programs, as a child hands them back; they name weights, no files.
_TRACED: dict[str, bytes] = {}


_Job = tuple[CheckpointRef, int, int | None]


def _run_isolated(
    work: Callable[[Sequence[_Job]], list[ProgramSet]], jobs: Sequence[_Job]
) -> list[ProgramSet]:
    return [_programs(work, job) for job in jobs]


def _programs(work: Callable[[Sequence[_Job]], list[ProgramSet]], job: _Job) -> ProgramSet:
    checkpoint, *lengths = job
    shapes = {name: (one.shape, one.dtype) for name, one in checkpoint.tensors.items()}
    key = repr((sorted(checkpoint.config.items()), sorted(shapes.items()), lengths))
    if key not in _TRACED:
        _TRACED[key] = pickle.dumps(work([job])[0])
    return pickle.loads(_TRACED[key])


def _run_parallel(
    work: Callable[..., Result], calls: Sequence[tuple[object, ...]], *, workers: int
) -> list[Result]:
    assert workers >= 1
    return [work(*call) for call in calls]


class BuiltBundles:
    """Checkpoints, configurations and bundles by model. Never change what it returns: copy it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._yamls: dict[TinyModel, Path] = {}
        self._results: dict[TinyModel, BuildResult] = {}

    def yaml(self, model: TinyModel = TINY) -> Path:
        """The YAML, its checkpoint written."""
        if model not in self._yamls:
            folder = self._folder / f"{len(self._yamls)}-{model.name}"
            folder.mkdir()
            checkpoint = write_tiny(folder / "checkpoint", model)
            self._yamls[model] = write_yaml(folder / "model.yaml", model, checkpoint)
        return self._yamls[model]

    def checkpoint(self, model: TinyModel = TINY) -> Path:
        """The Hugging Face folder."""
        return self.yaml(model).parent / "checkpoint"

    def config(self, model: TinyModel = TINY) -> BuildConfig:
        """The checked configuration."""
        return load_config(self.yaml(model))

    def result(self, model: TinyModel = TINY) -> BuildResult:
        """What the build said."""
        if model not in self._results:
            with in_this_process():
                self._results[model] = build(self.config(model))
        return self._results[model]

    def bundle(self, model: TinyModel = TINY) -> Path:
        """The built bundle's folder."""
        return self.result(model).bundle

    def copy(self, folder: Path, model: TinyModel = TINY) -> Path:
        """A copy of a bundle that a test may damage."""
        return Path(shutil.copytree(self.bundle(model), folder))

    def variant(self, folder: Path, **changed: object) -> Path:
        """The YAML of TINY with other fields, on TINY's checkpoint, in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        model = replace(TINY, **changed)  # type: ignore[arg-type]
        return write_yaml(folder / "model.yaml", model, self.checkpoint())
