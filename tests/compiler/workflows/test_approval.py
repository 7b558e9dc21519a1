"""What a build does with `evaluate`: figures, refusals, and what is not measured twice."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import BuiltBundles, in_this_process
from disk_state import files_below

from compiler.config import BuildConfig, load_config
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CheckFailed, CompilerError, ConfigError, MachineLacks
from compiler.contracts.evaluation import Evaluation
from compiler.contracts.target_base import Probe
from compiler.stages.open_bundle import open_bundle
from compiler.workflows import approval as approval_module
from compiler.workflows import build as build_workflow
from compiler.workflows.build import BuildResult, build
from compiler.workflows.check import check
from compiler.workflows.evaluate import evaluate_bundle
from targets.llvm.target import LLVMTarget
from targets.torch.target import TorchTarget

pytestmark = pytest.mark.slow

WORDS = " ".join(f"t{index * 7 % 120}" for index in range(60))


def evaluated(
    built_bundles: BuiltBundles, folder: Path, asked: Mapping[str, object]
) -> BuildConfig:
    """TINY's without a slice, in `folder`, its text beside the YAML."""
    path = built_bundles.variant(folder, name="judged", kept="all")
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "evaluate": asked}, indent=2), encoding="utf-8")
    (folder / "text.txt").write_text(WORDS, encoding="utf-8")
    return load_config(path)


def built(config: BuildConfig, *, force: bool = False) -> BuildResult:
    with in_this_process():
        return build(config, force=force)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Bundle]:
    """The bundles that are measured from here on."""
    seen: list[Bundle] = []

    def note(bundle: Bundle, *rest: object, **named: object) -> Evaluation:
        seen.append(bundle)
        return evaluate_bundle(bundle, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(approval_module, "evaluate_bundle", note)
    return seen


def test_a_bundle_is_measured_before_it_is_in_place(
    built_bundles: BuiltBundles, tmp_path: Path, measured: list[Bundle]
) -> None:
    asked = {"text": "text.txt", "tokens": 50, "max_perplexity_increase": 0.001}
    config = evaluated(built_bundles, tmp_path, asked)
    result = built(config)
    found = result.evaluation
    assert found is not None
    assert found.reference is not None
    assert (found.bundle, found.tokens) == (result.digest, 50)
    assert abs(found.reference.perplexity_increase) < 1e-5
    assert [bundle.path.name.startswith(".judged.partial-") for bundle in measured] == [True]
    file = config.workspace_path / "judged.evaluation.json"
    assert json.loads(file.read_bytes())["perplexity"] == found.perplexity
    assert open_bundle(result.bundle).manifest.digest == found.bundle

    again = built(config)
    assert (again.up_to_date, again.evaluation) == (True, found)
    assert len(measured) == 1


@pytest.mark.parametrize("change", ["missing", "damaged", "other bundle", "other text"])
def test_what_stands_there_is_measured_where_its_figures_are_not(
    built_bundles: BuiltBundles, tmp_path: Path, measured: list[Bundle], change: str
) -> None:
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    first = built(config)
    file = config.workspace_path / "judged.evaluation.json"
    kept = file.read_bytes()
    assert first.evaluation is not None
    match change:
        case "missing":
            file.unlink()
        case "damaged":
            file.write_bytes(kept[:-20])
        case "other bundle":
            file.write_bytes(kept.replace(first.digest.encode(), b"0" * 64))
        case "other text":
            (tmp_path / "text.txt").write_text(WORDS + " t3", encoding="utf-8")
    again = built(config)
    assert again.up_to_date
    assert [bundle.path for bundle in measured[1:]] == [first.bundle]
    assert again.evaluation is not None
    if change == "other text":
        assert again.evaluation.tokens == first.evaluation.tokens + 1
    else:
        assert again.evaluation == first.evaluation
        assert file.read_bytes() == kept


def test_a_bundle_over_the_limit_is_not_put_in_place(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle that stood there stays, and so do its figures."""
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    standing = built(config)
    before = files_below(tmp_path)
    asked = {"text": "text.txt", "max_perplexity_increase": 0.02}
    limited = evaluated(built_bundles, tmp_path, asked)
    before["model.yaml"] = limited.path.read_bytes()

    def worse(*rest: object, **named: object) -> Evaluation:
        found = evaluate_bundle(*rest, **named)  # type: ignore[arg-type]
        assert found.reference is not None
        figures = replace(found.reference, perplexity_increase=0.0201)
        return replace(found, reference=figures)

    monkeypatch.setattr(approval_module, "evaluate_bundle", worse)
    with pytest.raises(CheckFailed, match=r"is 0\.0201 over the .*, the limit is 0\.02") as caught:
        built(limited, force=True)
    assert caught.value.exit_code == 1
    assert caught.value.where == limited.place("evaluate.max_perplexity_increase")
    assert files_below(tmp_path) == before
    assert open_bundle(standing.bundle).manifest.digest == standing.digest

    fresh = evaluated(built_bundles, tmp_path / "fresh", asked)
    with pytest.raises(CheckFailed):
        built(fresh)
    assert not fresh.workspace_path.exists()


def test_a_tighter_limit_refuses_what_stands_there(
    built_bundles: BuiltBundles, tmp_path: Path, measured: list[Bundle]
) -> None:
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    built(config)
    file = config.workspace_path / "judged.evaluation.json"
    tree = json.loads(file.read_bytes())
    tree["reference"]["perplexity_increase"] = 0.5
    file.write_text(json.dumps(tree), encoding="utf-8")
    asked = {"text": "text.txt", "max_perplexity_increase": 0.4}
    before = files_below(config.workspace_path)
    with pytest.raises(CheckFailed, match=r"is 0\.5 over"):
        built(evaluated(built_bundles, tmp_path, asked))
    assert files_below(config.workspace_path) == before
    assert len(measured) == 1


def test_an_equal_bundle_of_another_build_is_measured_in_its_place(
    built_bundles: BuiltBundles,
    tmp_path: Path,
    measured: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It appeared while this build worked: it was not this one's to approve."""
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    first = built(replace(config, evaluate=None))
    assert (first.evaluation, measured) == (None, [])
    monkeypatch.setattr(build_workflow, "kept_bundle", lambda *_, **__: None)
    second = built(config)
    assert [bundle.path for bundle in measured] == [first.bundle]
    assert second.evaluation is not None
    assert (config.workspace_path / "judged.evaluation.json").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "text.txt cannot be read: No such file"),
        (b"", "text.txt has 0 tokens"),
        (b"t5 t\xff", "text.txt is not UTF-8"),
    ],
)
def test_a_wrong_text_is_refused_before_any_work(
    built_bundles: BuiltBundles,
    tmp_path: Path,
    content: bytes | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    (tmp_path / "text.txt").unlink()
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    monkeypatch.setattr(build_workflow, "enter", None)
    with pytest.raises(ConfigError, match=message) as caught:
        built(config)
    assert caught.value.where == config.place("evaluate.text")
    assert config.place("evaluate.text").startswith(f"{config.path}:")
    assert not config.workspace_path.exists()
    checked = check(config)
    assert [(error.message, error.where) for error in checked.errors] == [
        (caught.value.message, caught.value.where)
    ]


def test_a_checkpoint_without_a_tokenizer_is_refused(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    monkeypatch.setattr("compiler.text.tokenizer.TOKENIZER_FILE", "no-tokenizer.json")
    with pytest.raises(ConfigError, match=r"there is no no-tokenizer\.json") as caught:
        built(config)
    assert caught.value.where == config.place("evaluate.text")


def test_a_limit_asks_for_a_reference(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("no torch here",))
    monkeypatch.setattr(TorchTarget, "probe", lambda _: lacking)
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    alone = built(config).evaluation
    assert alone is not None
    assert (alone.reference, alone.note.partition(":")[0]) == (None, "perplexity alone")
    asked = {"text": "text.txt", "max_perplexity_increase": 0.4}
    with pytest.raises(CheckFailed, match=r"nothing to hold the perplexity against: .* no torch"):
        built(evaluated(built_bundles, tmp_path, asked))


def test_a_target_that_cannot_run_here_cannot_be_evaluated(
    built_bundles: BuiltBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds_alone = Probe(can_build=True, can_run=False, missing=("no card",))
    monkeypatch.setattr(LLVMTarget, "probe", lambda _: builds_alone)
    config = evaluated(built_bundles, tmp_path, {"text": "text.txt"})
    with pytest.raises(MachineLacks, match="no card"):
        built(config)
    errors: tuple[CompilerError, ...] = check(replace(config, evaluate=None)).errors
    assert errors == ()
