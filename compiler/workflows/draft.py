"""What a build has made so far -> the draft of its bundle."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from compiler.bundle_draft import BundleDraft, ModuleDraft
from compiler.config import BuildConfig
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import Program
from compiler.contracts.target_base import Lowered
from compiler.contracts.weights import CheckpointRef
from compiler.stages.rewrite import Rewritten
from compiler.workflows.plan import Plan
from compiler.workflows.quantization_facts import quantization_facts


def module_draft(program: Program, lowered: Lowered, folder: Path, *, rank: int) -> ModuleDraft:
    """One lowered phase of a rank, its files in `folder`."""
    return ModuleDraft(
        phase=program.phase,
        rank=rank,
        tokens=program.tokens,
        source_folder=folder,
        inputs=program.inputs(),
        outputs=program.outputs(),
        params=lowered.params,
        weights=program.weights,
        aliases=program.aliases,
        logits_of=program.logits_of,
        target=lowered.facts,
    )


def bundle_draft(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    plan: Plan,
    *,
    rewritten: Rewritten,
    modules: Sequence[ModuleDraft],
) -> BundleDraft:
    """All that becomes the bundle."""
    logits = next(spec for spec in modules[0].outputs if spec.name == "logits")
    return BundleDraft(
        name=config.name,
        digest=plan.digest,
        target=plan.target.name,
        config=config.resolved(),
        checkpoint={
            "sha256": checkpoint.digest,
            "model_type": checkpoint.config.get("model_type"),
            "architectures": checkpoint.config.get("architectures"),
        },
        window=config.frontend.shape.window,
        context=config.frontend.shape.context_or_window,
        vocabulary=int(logits.shape[-1]),
        modules=tuple(modules),
        passes=tuple(_kept(record) for record in rewritten.records),
        tools=plan.tools,
        snapshots=rewritten.snapshots,
        merge_params=config.backend.merge_params,
        quantization=_quantization(config, plan, modules),
    )


def _kept(record: PassRecord) -> dict[str, object]:
    """What the manifest keeps of a record: errors depend on the machine that measured them."""
    measured = ("error", "float64_error")
    return {key: value for key, value in asdict(record).items() if key not in measured}


def _quantization(
    config: BuildConfig, plan: Plan, modules: Sequence[ModuleDraft]
) -> dict[str, object]:
    """By phase, and what was decided by data; empty where nothing is asked for."""
    quantize = config.frontend.quantize
    if quantize is None:
        return {}
    facts: dict[str, object] = {
        module.phase: quantization_facts(quantize, module.phase) for module in modules
    }
    if plan.kept_as_floats:
        facts["kept_as_floats"] = list(plan.kept_as_floats)
    if plan.samples is not None:
        count, length = plan.samples.tokens.shape
        facts["calibration"] = {
            "source": plan.samples.source,
            "samples": int(count),
            "tokens_each": int(length),
            "sha256": plan.samples.digest,
        }
    return facts
