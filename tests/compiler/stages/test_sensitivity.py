"""What rounding each weight costs, against models that were rounded by hand."""

from collections.abc import Collection, Sequence

import numpy as np
import pytest
import torch
from quantized_forms import set_groups
from reference_model import load_reference
from staged_models import POINTS, staged
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Pass
from compiler.contracts.progress import Progress
from compiler.contracts.sensitivity import ModuleLoss
from compiler.contracts.target_base import ProgramModel
from compiler.stages.sensitivity import RoundingLoss, exclude_for, ranked
from passes.annotate_int8_qdq import AnnotateInt8QDQ

# A whole window and a part of one.
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, (2, WINDOW + 5))
QUIET = Progress()
HEAD_TOO: Sequence[Pass] = (
    *POINTS["slice"],
    AnnotateInt8QDQ(include=("*_proj", "lm_head")),
    *POINTS["llvm"][-2:],
)
JOINED: Sequence[Pass] = (*POINTS["all"][:-3], AnnotateInt8QDQ(), *POINTS["all"][-2:])


def losses_of(model: ProgramModel) -> RoundingLoss:
    return RoundingLoss(model.programs.programs["prefill"], model.checkpoint.rows, TOKENS)


def rounded(weight: torch.Tensor, *, bits: int = 8, group: int = 0) -> torch.Tensor:
    """Each stretch of `group` inputs by its own absmax."""
    groups = weight.float().reshape(-1, group or weight.shape[1])
    scales = groups.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(groups / scales) * scales).reshape(weight.shape)


def transformers_kl(
    model: ProgramModel, modules: Collection[str], *, bits: int = 8, group: int = 0
) -> float:
    """Mean divergence of transformers with these modules rounded from transformers without."""
    exact, coarse = (load_reference(model.checkpoint.path) for _ in range(2))
    logs = []
    with torch.no_grad():
        for name in modules:
            weight = coarse.get_submodule(name).weight
            assert isinstance(weight, torch.Tensor)
            weight.copy_(rounded(weight, bits=bits, group=group))
        for one in (exact, coarse):
            logits = one(torch.tensor(TOKENS), use_cache=False).logits
            logs.append(logits.double().log_softmax(-1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.parametrize(
    ("name", "passes", "count"),
    [("gqa", POINTS["int8"], 14), ("gqa", HEAD_TOO, 15), ("qwen3", JOINED, 8)],
    ids=["seven linears", "and the head", "joined"],
)
def test_each_weight_costs_what_rounding_it_in_transformers_costs(
    traced_models: TracedModels, name: str, passes: Sequence[Pass], count: int
):
    model = staged(traced_models, name, passes)
    loss = losses_of(model)
    found = loss.of_each(progress=QUIET)
    assert len(found) == len(loss.weights) == count
    wanted = [transformers_kl(model, one.modules) for one in found]
    np.testing.assert_allclose([one.kl for one in found], wanted, rtol=2e-2, atol=1e-9)
    assert [one.kl for one in ranked(found)] == sorted((one.kl for one in found), reverse=True)
    assert min(wanted) > 1e-8
    # Rounded alone, and as one of several of which it is the only one.
    assert [loss.of([one.modules]) for one in found] == pytest.approx(
        [one.kl for one in found], rel=1e-4
    )


def test_bits_and_groups_are_those_of_the_program(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    set_groups(model.programs.programs["prefill"], bits=4, group=8)
    found = losses_of(model).of_each(progress=QUIET)
    wanted = [transformers_kl(model, one.modules, bits=4, group=8) for one in found]
    np.testing.assert_allclose([one.kl for one in found], wanted, rtol=2e-2)
    assert min(wanted) > 1e-5


def test_what_several_cost_together_is_measured(traced_models: TracedModels):
    model = staged(traced_models, "gqa", HEAD_TOO)
    loss = losses_of(model)
    every = [name for modules in loss.weights for name in modules]
    assert loss.of(list(loss.weights)) == pytest.approx(transformers_kl(model, every), rel=1e-2)
    some = [*list(loss.weights)[2:9], ("lm_head",)]
    named = [name for modules in some for name in modules]
    assert loss.of(some) == pytest.approx(transformers_kl(model, named), rel=1e-2)
    assert loss.of([]) == 0


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_the_budget_holds_and_no_weight_fewer_would_do(traced_models: TracedModels, share: float):
    model = staged(traced_models, "gqa", POINTS["int8"])
    loss = losses_of(model)
    ranking = ranked(loss.of_each(progress=QUIET))
    budget = share * loss.of(list(loss.weights))
    found = exclude_for(loss, ranking, target_loss=budget, progress=QUIET)

    count = len(found.modules)
    assert found.modules == tuple(one.modules[0] for one in ranking[:count])
    assert 0 < count < 14
    assert found.remaining == 14 - count
    left = [one.modules[0] for one in ranking[count:]]
    assert transformers_kl(model, left) == pytest.approx(found.kl, rel=2e-2)
    assert found.kl <= budget
    one_fewer = [*left, found.modules[-1]]
    assert transformers_kl(model, one_fewer) > budget


@pytest.mark.parametrize(("budget", "count"), [(0.0, 14), (1e9, 0)])
def test_the_ends(traced_models: TracedModels, budget: float, count: int):
    loss = losses_of(staged(traced_models, "gqa", POINTS["int8"]))
    ranking = ranked(loss.of_each(progress=QUIET))
    found = exclude_for(loss, ranking, target_loss=budget, progress=QUIET)
    assert (len(found.modules), found.remaining) == (count, 14 - count)
    assert found.kl == (0.0 if count else loss.of(list(loss.weights)))


def test_a_model_of_no_numbers_is_said(traced_models: TracedModels):
    model = staged(traced_models, "gqa", POINTS["int8"])
    reads = model.checkpoint.rows

    for name in ("model.norm.weight", "model.layers.1.input_layernorm.weight"):
        program = model.programs.programs["prefill"]

        def nans(asked: str, start: int, stop: int, name: str = name) -> np.ndarray:
            found = reads(asked, start, stop)
            return (found * np.nan).astype(found.dtype) if asked == name else found

        with pytest.raises(CheckFailed, match="the float model gives what is no number"):
            RoundingLoss(program, nans, TOKENS).of_each(progress=QUIET)


def test_what_is_no_number_is_the_costliest():
    nan, small, large = (
        ModuleLoss((name,), kl) for name, kl in (("a", float("nan")), ("b", 1e-9), ("c", 2.0))
    )
    also = ModuleLoss(("d",), 1e-9)
    assert ranked([small, large, nan, also]) == (nan, large, small, also)
