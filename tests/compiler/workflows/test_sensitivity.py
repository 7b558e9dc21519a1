"""The ranking of a YAML's weights, and what a budget leaves out, measured once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built_bundles import TINY, BuiltBundles, in_this_process

from compiler.cli import main
from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import ConfigError
from compiler.contracts.progress import Progress
from compiler.contracts.sensitivity import Sensitivity
from compiler.stages.sensitivity import RoundingLoss
from compiler.workflows import sensitivity as workflow
from compiler.workflows.behind_passes import final_programs
from compiler.workflows.frontend import locate
from compiler.workflows.samples import samples_of
from compiler.workflows.sensitivity import excluded_for, sensitivity
from compiler.workflows.sensitivity_cache import remembered

pytestmark = pytest.mark.slow

QUIET = Progress()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def quantized(built_bundles: BuiltBundles, tmp_path: Path) -> Callable[..., Path]:
    """TINY's YAML with a quantizer, and text to calibrate on."""

    def write(**quantize: object) -> Path:
        path = built_bundles.variant(tmp_path, name="ranked")
        words = np.random.default_rng(1).integers(0, TINY.vocabulary - 4, 400)
        (tmp_path / "data.txt").write_text(" ".join(f"t{word}" for word in words))
        tree = json.loads(path.read_text(encoding="utf-8"))
        tree["frontend"]["quantize"] = quantize
        # What stays a float is then stored as it is.
        tree["backend"] |= {"dtype": "int8", "compute_dtype": "fp32"}
        tree["dataset"] = {"type": "text", "path": "data.txt", "nsamples": 3, "seqlen": 40}
        path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    return write


def measured(path: Path, samples: int = 2) -> Sensitivity:
    with in_this_process():
        return sensitivity(load_config(path), samples=samples)


def independent_loss(config: BuildConfig, exclude: tuple[str, ...]) -> tuple[float, int]:
    """Of all that a build with this `exclude` would round, and how many weights that is."""
    quantize = config.frontend.quantize
    assert quantize is not None
    left_out = quantize.model_copy(update={"exclude": exclude, "target_loss": None})
    frontend = config.frontend.model_copy(update={"quantize": left_out})
    changed = replace(config, frontend=frontend)
    checkpoint = locate(changed, progress=QUIET)
    read = samples_of(changed, checkpoint, QUIET.note, most=2)
    with in_this_process():
        programs = final_programs(changed, checkpoint)
    loss = RoundingLoss(programs.programs["prefill"], checkpoint.rows, read.tokens)
    return loss.of(list(loss.weights)), len(loss.weights)


def test_every_weight_is_ranked_once(quantized: Callable[..., Path]) -> None:
    found = measured(quantized(type="w8a16", exclude=["*.0.mlp.up_proj"]))
    names = [one.modules for one in found.ranking]
    assert len(names) == len(set(names)) == 2 * 7 - 1
    assert ("model.layers.0.mlp.up_proj",) not in names
    costs = [one.kl for one in found.ranking]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] > 0
    # Of three windows that the YAML asks for.
    assert (found.source, found.samples, found.tokens) == ("text: data.txt", 2, 40)
    assert found.exclusion is None


def test_fewer_bits_cost_more(quantized: Callable[..., Path]) -> None:
    eight = measured(quantized(type="w8a16"))
    four = measured(quantized(type="w8a16", calib_args={"bits": 4, "group_size": 16}))
    by_name = {one.modules: one.kl for one in eight.ranking}
    assert all(one.kl > 10 * by_name[one.modules] for one in four.ranking)


def test_a_budget_holds_in_what_would_be_built(quantized: Callable[..., Path]) -> None:
    path = quantized(type="w8a16", calib_args={"bits": 4})
    whole, _ = independent_loss(load_config(path), ())
    path = quantized(type="w8a16", calib_args={"bits": 4}, target_loss=0.4 * whole)
    config = load_config(path)
    found = measured(path).exclusion
    assert found is not None
    loss, count = independent_loss(config, found.modules)
    assert loss == pytest.approx(found.kl, rel=1e-4)
    assert 0 < loss <= 0.4 * whole
    assert count == found.remaining == 14 - len(found.modules)
    fewer, _ = independent_loss(config, found.modules[:-1])
    assert fewer > 0.4 * whole


def test_nothing_is_measured_twice(
    quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = quantized(type="w8a16", calib_args={"bits": 4}, target_loss=0.001)
    config = load_config(path)
    first = measured(path)
    checkpoint = locate(config, progress=QUIET)
    with in_this_process():
        programs = final_programs(config, checkpoint)
    tokens = samples_of(config, checkpoint, QUIET.note, most=2).tokens
    with monkeypatch.context() as patch:
        patch.setattr(RoundingLoss, "of_each", None)
        patch.setattr(RoundingLoss, "of", None)
        assert measured(path) == first
        chosen = excluded_for(config, programs, checkpoint, tokens, progress=QUIET)
        assert first.exclusion is not None
        assert chosen == first.exclusion.modules != ()
        with pytest.raises(TypeError):  # other tokens
            excluded_for(config, programs, checkpoint, tokens[:1], progress=QUIET)
        for file in (tmp_path / "cache" / "sensitivity").iterdir():
            file.write_text("{}", encoding="utf-8")
        with pytest.raises(TypeError):  # nothing that is damaged is believed
            measured(path)


def test_a_budget_that_no_weight_meets_is_said(quantized: Callable[..., Path]) -> None:
    notes: list[str] = []

    class Noting(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    config = load_config(quantized(type="w8a16", target_loss=0))
    with in_this_process():
        found = sensitivity(config, samples=1, progress=Noting())
    assert found.exclusion is not None
    assert (len(found.exclusion.modules), found.exclusion.kl) == (14, 0.0)
    assert notes[-1] == "target_loss 0 is less than what any weight costs: all stay floats"


def test_without_a_budget_nothing_is_left_out(
    quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(quantized(type="w8a16"))
    checkpoint = locate(config, progress=QUIET)
    with in_this_process():
        programs = final_programs(config, checkpoint)
    monkeypatch.setattr(workflow, "RoundingLoss", None)
    assert excluded_for(config, programs, checkpoint, np.zeros((1, 4)), progress=QUIET) == ()


def test_floats_cost_nothing(built_bundles: BuiltBundles) -> None:
    config = built_bundles.config()
    with pytest.raises(ConfigError, match="no weight is quantized") as caught:
        sensitivity(config, samples=1)
    assert caught.value.where == config.place("frontend.quantize")


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("GRAPHLOWER_CACHE", str(tmp_path / "file"))
    assert remembered("key", workflow._EXCLUSION, lambda: EXCLUSION) == EXCLUSION


EXCLUSION = workflow.Exclusion(("a", "b"), 0.01, 0.02, 3)


def test_what_is_no_number_is_remembered(tmp_path: Path) -> None:
    broken = replace(EXCLUSION, kl=float("nan"))
    remembered("key", workflow._EXCLUSION, lambda: broken)
    again = remembered("key", workflow._EXCLUSION, lambda: EXCLUSION)
    assert again.modules == ("a", "b")
    assert np.isnan(again.kl)


def test_the_command(quantized: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = quantized(type="w8a16", calib_args={"bits": 4}, target_loss=0.001)
    with in_this_process():
        command = ["sensitivity", str(path), "--samples", "1"]
        assert main([*command, "--json", "--quiet"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(shown) == ["source", "samples", "tokens", "ranking", "exclusion"]
    worst = shown["ranking"][0]
    assert lines[0].split() == ["weight", "nats", "a", "token", "stays"]
    assert lines[1].split() == [*worst["modules"], f"{worst['kl']:.3e}", "float"]
    assert len(lines) == 1 + 14 + 1
    remaining = shown["exclusion"]["remaining"]
    assert lines[-1].startswith(f"{remaining} of 14 weights rounded cost")
    assert main(["sensitivity", str(path), "--samples", "0", "--json"]) == 2
    assert "--samples is 0" in capsys.readouterr().out
