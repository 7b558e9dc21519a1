"""Opening a bundle for running: files verified, the target asked, the tokenizer read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from bundle_factory import make_checkpoint, make_draft

from compiler import registry
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import BundleError, CompilerError, ConfigError, RunError
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.contracts.target_base import Probe, ProgramModel, Target, TargetOptions
from compiler.contracts.weights import CheckpointRef
from compiler.stages import open_bundle as open_bundle_stage
from compiler.stages.execute import GenerateOptions
from compiler.stages.open_bundle import open_bundle
from compiler.stages.package import package
from compiler.workflows.run import open_session


class CountingRunner(Runner):
    """Says as many as it has read."""

    vocabulary = 50
    context = 32

    def __init__(self) -> None:
        self.is_closed = False

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.length += len(tokens)
        return np.eye(self.vocabulary, dtype=np.float32)[self.length]

    def close(self) -> None:
        self.is_closed = True


class StandIn(Target):
    name = "stand-in"
    opens = "bundle"
    opened: ClassVar[list[tuple[Bundle, int | None]]] = []

    def probe(self) -> Probe:
        return Probe(can_build=False, can_run=True)

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        del options, config
        return []

    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> CountingRunner:
        assert isinstance(model, Bundle)
        assert variant == ""
        self.opened.append((model, threads))
        return CountingRunner()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    draft = make_draft(tmp_path / "modules")
    return package(tmp_path / "tiny", draft, checkpoint, force=False, progress=Progress()).path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bundle, int | None]]:
    """What the stand-in target opens from here on."""

    def load(name: str, *, where: str | None = None) -> type[Target]:
        assert name == "stand-in"
        assert where is not None
        assert where.endswith("manifest.json")
        return StandIn

    monkeypatch.setattr(registry, "load_target", load)
    monkeypatch.setattr(StandIn, "opened", [])
    return StandIn.opened


def test_a_bundle_opens_with_its_target_and_the_ids_that_end_a_text(
    bundle: Path, opened: list[tuple[Bundle, int | None]]
) -> None:
    with open_session(bundle, threads=2) as session:
        generation = session.complete([7, 7], GenerateOptions(max_tokens=9))
    assert generation.tokens == (2, 3)  # generation_config.json of the factory: 3 and 4
    assert generation.finish_reason == "eos"
    assert [(model.path, threads) for model, threads in opened] == [(bundle, 2)]
    assert isinstance(session.runner, CountingRunner)
    assert session.runner.is_closed


@pytest.mark.usefixtures("opened")
def test_a_bundle_without_a_tokenizer_runs_on_ids_alone(bundle: Path) -> None:
    with (
        open_session(bundle) as session,
        pytest.raises(RunError, match=r"there is no tokenizer\.json") as caught,
    ):
        session.generate("hello", GenerateOptions(max_tokens=1))
    assert caught.value.where == str(bundle)


def test_a_damaged_bundle_is_not_opened(
    bundle: Path, opened: list[tuple[Bundle, int | None]]
) -> None:
    (bundle / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"config\.json has 2 bytes"):
        open_session(bundle)
    assert opened == []


@pytest.mark.usefixtures("opened")
def test_verify_hashes_the_parameters_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = bundle / "params" / "rank0.safetensors"
    known = open_bundle(bundle).manifest.files["params/rank0.safetensors"]
    monkeypatch.setattr(open_bundle_stage, "remembered_sha256", lambda _: known)
    data = bytearray(params.read_bytes())
    data[-1] ^= 1
    params.write_bytes(data)
    open_session(bundle).close()
    with pytest.raises(BundleError, match=r"rank0\.safetensors has been changed"):
        open_session(bundle, verify=True)


@pytest.mark.parametrize("threads", [0, -2])
def test_threads_out_of_range_are_refused(bundle: Path, threads: int) -> None:
    with pytest.raises(RunError, match=f"threads is {threads}, expected at least 1"):
        open_session(bundle, threads=threads)


def test_an_unknown_target_is_named_with_the_manifest(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="'stand-in'") as caught:
        open_session(bundle)
    assert caught.value.where == str(bundle / "manifest.json")
