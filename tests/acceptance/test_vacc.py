"""A trained model in the emulator: transformers' greedy tokens, by one rank and by three."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_table import Table
from compiler_process import ROOT, run_json
from reference_model import reference_greedy
from trained_model import prompts, trained_reference
from transformers import PreTrainedModel

from compiler.comparing.steps import Step, compare_step
from compiler.config.compare_section import COMPARE_DEFAULTS, Dtype
from compiler.workflows.run import open_session

pytestmark = pytest.mark.accept

TOKENS = 64
NEAR_TIES = 2
YAMLS: dict[Dtype, str] = {"fp16": "smollm2-135m", "int8": "smollm2-135m-gptq"}


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    """transformers' own reading of the GGUF file, in float32."""
    return trained_reference()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Gone afterwards: half a gigabyte for each bundle."""
    path = tmp_path_factory.mktemp("vacc")
    yield path
    shutil.rmtree(path)


def built(folder: Path, dtype: Dtype, ways: int) -> Path:
    """The bundle, by the command line."""
    yaml = ROOT / "models" / f"{YAMLS[dtype]}.yaml"
    options = {
        "backend.dtype": dtype,
        "frontend.model_kwargs.tp": ways,
        "workspace.path": folder,
    }
    given = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    return Path(str(run_json("build", yaml, "--target", "vacc", *given, cwd=folder)["bundle"]))


def steps_of(
    bundle: Path, reference: PreTrainedModel, dtype: Dtype, *, tokens: int = TOKENS
) -> list[Step]:
    """Each greedy token of the reference, and what the bundle says behind the same tokens."""
    limits = COMPARE_DEFAULTS[dtype].model_dump()
    steps: list[Step] = []
    with open_session(bundle) as session:
        for number, prompt in enumerate(prompts(session.text).values()):
            chosen, wanted = reference_greedy(reference, prompt, tokens)
            session.runner.rewind(0)
            given = session.runner.extend(prompt)
            for index, token in enumerate(chosen):
                place = (number, index)
                steps.append(compare_step(place, token, wanted[index], given, limits=limits))
                if index + 1 < len(chosen):
                    given = session.runner.extend([token])
    return steps


@pytest.mark.parametrize(("dtype", "ways"), [("fp16", 1), ("fp16", 3), ("int8", 3)])
def test_greedy_tokens_of_the_emulator(
    table: Table, folder: Path, reference: PreTrainedModel, dtype: Dtype, ways: int
) -> None:
    shown = [step.shown for step in steps_of(built(folder, dtype, ways), reference, dtype)]
    missed = [one for one in shown if not one.is_top1_equal]
    decided = sum(not one.is_near_tie for one in missed)
    outside = sum(one.status != "pass" for one in shown)
    what = f"SmolLM2-135M {dtype} in the emulator, tp {ways}, against transformers in float32"
    limits = COMPARE_DEFAULTS[dtype]
    # Int8 weights change what is chosen where two tokens are close; the comparison's share holds.
    least = 1 - NEAR_TIES / len(shown) if dtype == "fp16" else limits.min_greedy
    share = 1 - len(missed) / len(shown)
    table.judge(
        f"{what}: greedy tokens behind the same tokens",
        wanted=f"{least:.2%} equal, the others near-ties",
        measured=f"{len(shown) - len(missed)} of {len(shown)} ({share:.2%}), "
        f"{decided} of the others no near-ties",
        is_met=share >= least and not decided,
    )
    figures = (
        f"max_abs {max(one.measures.max_abs for one in shown):.2g}, "
        f"max_rel {max(one.measures.max_rel for one in shown):.2g}, "
        f"cosine {min(one.measures.cosine for one in shown):.5f}, "
        f"KL {max(one.kl for one in shown):.2g}; "
        f"{outside} of {len(shown)} steps outside the limits of compare"
    )
    if dtype == "fp16":  # whose limits are of float16 weights alone: activations are float16, too
        table.note(f"{what}: logits", measured=figures)
        return
    table.judge(
        f"{what}: logits",
        wanted="within the limits of compare",
        measured=figures,
        is_met=not outside,
    )
