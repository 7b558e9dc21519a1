"""The target that is tried, what was built with it so far, and what it is held against."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from compiler import registry
from compiler.config import BuildConfig, CompareLimits, Dtype
from compiler.conformance.block_build import BlockJob, BuiltBlock, build_blocks
from compiler.conformance.models import (
    BIASED,
    CONTEXT,
    MODEL,
    WINDOW,
    Block,
    block_config,
    model_config,
    write_model,
)
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, TargetError, raise_all
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import Target, TargetOptions
from compiler.contracts.weights import CheckpointRef
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.build import build
from compiler.workflows.comparing.targets import TargetChoice, TargetOpener
from compiler.workflows.frontend import locate

DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")
# What numbers are held against: the first that is not the target itself.
_REFERENCES = ("torch", "onnxruntime")


@dataclass(frozen=True)
class Opened:
    """A bundle that was built, or what stands for it with a target that builds none."""

    checkpoint: CheckpointRef
    bundle: Bundle | None


class Subject:
    """One target under test; what is expensive is made once, when it is first asked for.

    Args:
        target: The target.
        name: As the registry has it.
        folder: An empty folder for models and bundles.
        seed: Of weights and tokens.
        blocks: The building blocks that will be asked for, in the first dtype.
        dtypes: What the block of every dtype will be asked for in.

    Attributes:
        builds: Whether it builds bundles.
    """

    def __init__(
        self,
        target: Target,
        *,
        name: str,
        folder: Path,
        seed: int,
        blocks: Sequence[Block],
        dtypes: Sequence[Dtype],
    ) -> None:
        self.target, self.name, self.folder, self.seed = target, name, folder, seed
        self.builds = target.opens == "bundle"
        self.reference = next(one for one in _REFERENCES if one != name)
        self._blocks, self._dtypes = blocks, dtypes
        self._why_no_model = ""

    def options(self, dtype: str, **compiled: object) -> TargetOptions:
        """As a build hands them over, with `backend.compile` as given."""
        places = {
            "backend.type": "conformance.yaml:2:3",
            "backend.dtype": "conformance.yaml:3:3",
            "frontend.shape.input_ids": "conformance.yaml:4:3",
            "frontend.model_kwargs.tp": "conformance.yaml:5:3",
            "backend.compile": "conformance.yaml:6:3",
        }
        for number, key in enumerate(compiled, start=7):
            places[f"backend.compile.{key}"] = f"conformance.yaml:{number}:5"
        return TargetOptions(
            dtype=dtype,
            window=WINDOW,
            context=CONTEXT,
            compile=dict(compiled),  # type: ignore[arg-type]
            places=places,
        )

    @cached_property
    def refusals(self) -> Mapping[Dtype, list[CompilerError]]:
        """What its constraints say of the model in each dtype of floats."""
        config = block_config(MODEL)
        return {
            dtype: self.target.constraints(self.options(dtype), config) if self.builds else []
            for dtype in DTYPES
        }

    @property
    def dtype(self) -> Dtype:
        """The first that it accepts; float32 where it builds nothing.

        Raises:
            TargetError: It accepts none.
        """
        accepted: list[Dtype] = [dtype for dtype in DTYPES if not self.refusals[dtype]]
        if not accepted:
            raise TargetError(
                f"target '{self.name}' accepts a plain Qwen2 in none of {', '.join(DTYPES)}",
                hint="its constraints say why: see the check 'constraints'",
            )
        return accepted[0]

    def config(self, dtype: Dtype) -> BuildConfig:
        """The YAML of the model."""
        return model_config(self.folder, self._model_folder, target=self.name, dtype=dtype)

    def limits(self, dtype: Dtype) -> CompareLimits:
        """What a comparison lets pass."""
        return self.config(dtype).compare

    @cached_property
    def _model_folder(self) -> Path:
        return write_model(self.folder / "model", seed=self.seed)

    @cached_property
    def _opener(self) -> TargetOpener:
        config = self.config(self.dtype)
        return TargetOpener(config, locate(config, progress=Progress()), Progress())

    @property
    def checkpoint(self) -> CheckpointRef:
        """Of the model."""
        return self._opener.checkpoint

    @cached_property
    def _bundle(self) -> Bundle:
        return open_bundle(build(self._opener.config).bundle)

    @property
    def bundle(self) -> Bundle:
        """The model's bundle, by the whole build.

        Raises:
            TargetError: Building it failed before, and was said.
        """
        if self._why_no_model:
            raise TargetError(
                f"the model could not be built: {self._why_no_model}",
                hint="mend what the first check that needed it says",
            )
        try:
            return self._bundle
        except Exception as error:  # a stranger's code: said by each check that needs the model
            self._why_no_model = str(error) or type(error).__name__
            raise

    def open(self) -> Runner:
        """The model, opened anew."""
        if self.builds:
            return self.target.open(self.bundle)
        return self._opener.open(TargetChoice(self.name))

    def open_reference(self) -> Runner:
        """The same checkpoint, in float32, by another target."""
        choice = TargetChoice(self.reference)
        if registry.load_target(self.reference).opens == "program":
            return self._opener.open_program(choice, ())
        return self._opener.open(choice)

    @cached_property
    def _built_blocks(self) -> Mapping[tuple[str, Dtype], BuiltBlock]:
        jobs = [BlockJob(block, self.dtype) for block in self._blocks if not self.refused(block)]
        further: Sequence[Dtype] = self._dtypes if self.builds else ()
        jobs += [
            BlockJob(BIASED, dtype)
            for dtype in further
            if dtype != self.dtype and not self.refusals[dtype]
        ]
        configs: dict[Dtype, BuildConfig] = {job.dtype: self.config(job.dtype) for job in jobs}
        return build_blocks(
            self.target, jobs, configs, folder=self.folder / "blocks", seed=self.seed
        )

    def refused(self, block: Block) -> list[CompilerError]:
        """What its constraints say of a block."""
        if not self.builds:
            return []
        return self.target.constraints(self.options(self.dtype), block_config(block.options))

    def block(self, block: Block, dtype: Dtype) -> BuiltBlock:
        """A block that is built.

        Raises:
            CompilerError: It could not be built.
        """
        raise_all(self.refused(block))
        built = self._built_blocks[block.name, dtype]
        if built.error is not None:
            raise built.error
        return built

    def copy_of_bundle(self) -> Path:
        """The model's bundle at another place."""
        place = self.folder / "elsewhere" / "bundle"
        if not place.exists():
            shutil.copytree(self.bundle.path, place)
        return place
