"""A bundle of several prompts: each gets what it gets alone, and none what is another's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from built_bundles import TINY, BuiltBundles, in_this_process
from staged_models import observed

from compiler.cli import main
from compiler.config import load_config
from compiler.contracts.errors import CompilerErrors, ConfigError, RunError, TargetError
from compiler.contracts.progress import Progress
from compiler.contracts.taps import LAYER_TAPS, Observer
from compiler.stages.execute import GenerateOptions
from compiler.stages.open_bundle import open_bundle
from compiler.stages.semantic import check_semantics
from compiler.workflows.check import check
from compiler.workflows.frontend import locate
from compiler.workflows.plan import plan_build
from compiler.workflows.run import open_session
from targets.llvm.runner import LLVMRunner

pytestmark = pytest.mark.slow

THREE = replace(TINY, batch=3)
# A padded window, a short one, and two windows.
PROMPTS = ([3, 1, 4, 1, 5], [9, 2, 6], [7 * index % 113 for index in range(40)])
OPTIONS = GenerateOptions(max_tokens=7, keep_logits=True)


@pytest.fixture
def runner(built_bundles: BuiltBundles) -> LLVMRunner:
    return LLVMRunner(open_bundle(built_bundles.bundle(THREE)))


def torch_greedy(folder: Path, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, rows = list(prompt), []
    for _ in range(OPTIONS.max_tokens):
        with torch.no_grad():
            rows.append(model(torch.tensor([tokens])).logits[0, -1].numpy())
        tokens.append(int(rows[-1].argmax()))
    return tokens[len(prompt) :], np.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_prompt_is_continued_as_torch_does(built_bundles: BuiltBundles, count: int):
    with open_session(built_bundles.bundle(THREE)) as session:
        found = session.generate_each(PROMPTS[:count], OPTIONS)
    assert len(found) == count
    for prompt, generation in zip(PROMPTS[:count], found, strict=True):
        tokens, rows = torch_greedy(built_bundles.checkpoint(THREE), prompt)
        assert list(generation.tokens) == tokens
        assert generation.prompt_tokens == len(prompt)
        assert generation.logits is not None
        np.testing.assert_allclose(generation.logits, rows, rtol=0, atol=2e-5)


def test_weights_are_stored_once_and_caches_for_each(built_bundles: BuiltBundles):
    one, three = (open_bundle(built_bundles.bundle(m)).manifest for m in (TINY, THREE))
    params = "params/rank0.safetensors"
    assert three.sizes[params] == one.sizes[params]
    assert [p["name"] for p in three.passes][-1] == "fold-batch"
    assert any("fold-batch" in name for name in three.files if name.startswith("ir/decode/"))
    with in_this_process():
        plans = [check(built_bundles.config(model)).plan for model in (TINY, THREE)]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[1].cache_bytes == 3 * plans[0].cache_bytes
    assert plans[1].disk_bytes == plans[0].disk_bytes


def test_a_slot_keeps_its_length_and_what_it_has_read(runner: LLVMRunner):
    assert runner.slots == 3
    alone = [runner.extend(PROMPTS[0]), runner.extend([8])]
    rows = runner.cache_rows(1, 0, 6)
    runner.use_slot(2)
    assert runner.length == 0
    runner.extend(PROMPTS[2])
    runner.use_slot(1)
    again = [runner.extend(PROMPTS[0]), runner.extend([8])]
    assert [one.tobytes() for one in again] == [one.tobytes() for one in alone]
    for mine, theirs in zip(runner.cache_rows(1, 0, 6), rows, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    runner.rewind(5)
    assert [runner.use_slot(slot) or runner.length for slot in range(3)] == [6, 5, 40]
    with pytest.raises(AssertionError, match="slot 3 of 3"):
        runner.use_slot(3)


def test_a_step_that_one_prompt_cannot_take_changes_none(runner: LLVMRunner):
    runner.extend(PROMPTS[0])
    runner.use_slot(1)
    runner.extend([5] * runner.context)
    runner.use_slot(0)
    for tokens, said in (({0: 3, 1: 4}, "do not fit"), ({0: 3, 2: 999}, "outside the vocabulary")):
        with pytest.raises(RunError, match=said):
            runner.extend_each(tokens)
        assert (runner.slot, runner.length) == (0, 5)
    found = runner.extend_each({0: 3})
    assert list(found) == [0]
    assert runner.length == 6


def test_semantic_checks_hold_and_prompts_are_among_them(runner: LLVMRunner):
    checks = check_semantics(runner, window=runner.window, seed=0, limit=1e-4)
    assert {one.name: one.status for one in checks} == dict.fromkeys(
        ("causality", "prefill-decode", "window-split", "padding", "reset", "batch-rows"), "pass"
    )
    assert [runner.use_slot(slot) or runner.length for slot in range(3)] == [0, 0, 0]


def test_taps_are_those_of_one_prompt(built_bundles: BuiltBundles, runner: LLVMRunner):
    """Of slot 0, whatever stands in the others."""
    single = LLVMRunner(open_bundle(built_bundles.bundle(TINY)))
    runner.use_slot(1)
    runner.extend(PROMPTS[2])
    runner.use_slot(0)
    for tokens in (PROMPTS[0], [8]):
        wanted, found = (observed(one, tokens) for one in (single, runner))
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=2e-5)
        assert found[1].keys() == wanted[1].keys()
        for tap, rows in wanted[1].items():
            np.testing.assert_allclose(found[1][tap], rows, rtol=0, atol=2e-5, err_msg=str(tap))
    assert {tap.point for tap in found[1]} >= {"q", "q_rot", "k_rot", "keys", "attn", "act"}


def test_taps_of_another_slot_are_refused(runner: LLVMRunner):
    class Watching(Observer):
        """Sees all."""

        points = frozenset(LAYER_TAPS)

        def see(self, tap, rows):
            del tap, rows

    runner.observe(Watching())
    runner.extend([3, 1])
    runner.use_slot(1)
    for tokens in ([3, 1], [3]):
        with pytest.raises(TargetError, match="slot 0 alone"):
            runner.extend(tokens)
    with pytest.raises(TargetError, match="slot 0 alone"):
        runner.extend_each({0: 3, 1: 4})


def test_prompts_on_the_command_line(
    built_bundles: BuiltBundles, capsys: pytest.CaptureFixture[str]
):
    bundle = str(built_bundles.bundle(THREE))

    def run(*texts: str) -> dict[str, object]:
        prompts = [part for text in texts for part in ("--prompt", text)]
        assert main(["run", bundle, *prompts, "--max-tokens", "5", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    texts = ("t3 t1 t4", "t9 t2", "t7 t7 t7 t7")
    together = run(*texts)["generations"]
    assert isinstance(together, list)
    for text, found in zip(texts, together, strict=True):
        alone = run(text)
        assert (found["tokens"], found["text"]) == (alone["tokens"], alone["text"])
    assert main(["run", bundle, *["--prompt", "t1"] * 2, "--max-tokens", "3"]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


def test_more_prompts_than_slots(built_bundles: BuiltBundles):
    with open_session(built_bundles.bundle(TINY)) as session:
        with pytest.raises(RunError, match="2 prompts were given, the bundle serves 1") as caught:
            session.generate_each(["t1", "t2"], OPTIONS)
        assert "frontend.shape.batch" in str(caught.value.hint)
        (found,) = session.generate_each(["t1"], OPTIONS)
        assert found.tokens == session.complete("t1", OPTIONS).tokens


@pytest.mark.parametrize(
    ("changed", "overrides", "codes"),
    [
        ({"batch": 2, "ways": 2}, (), ["one-prompt"]),
        ({"batch": 2}, ("backend.type=vacc", "backend.dtype=fp16"), ["one-prompt"]),
        ({"added": ("fold-batch",)}, (), None),
    ],
    ids=["ranks", "accelerator", "own pass"],
)
def test_what_is_not_folded_is_refused_before_work(
    built_bundles: BuiltBundles,
    tmp_path: Path,
    changed: dict[str, object],
    overrides: tuple[str, ...],
    codes: list[str] | None,
):
    config = load_config(built_bundles.variant(tmp_path, **changed), overrides=overrides)
    with pytest.raises((CompilerErrors, ConfigError)) as caught:
        plan_build(config, locate(config, progress=Progress()))
    error = caught.value
    found = [one.code for one in (error.errors if isinstance(error, CompilerErrors) else (error,))]
    assert found == codes if codes else "fold-pass" in found
