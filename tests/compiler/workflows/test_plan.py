"""What a build decides before it works: the order, the target's refusals, and the digest."""

from pathlib import Path

import pytest
from built_bundles import BuiltBundles
from checkpoint_factory import change_config, write_checkpoint

from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import CheckpointError, CompilerErrors, ConfigError
from compiler.contracts.progress import Progress
from compiler.workflows import plan as plan_module
from compiler.workflows.frontend import family_of, locate
from compiler.workflows.plan import plan_build, tool_versions


def digest_of(config: BuildConfig) -> str:
    return plan_build(config, locate(config, progress=Progress())).digest


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    path = tmp_path / "model.yaml"
    path.write_text(
        "frontend: {checkpoint: checkpoint, type: huggingface, shape: {input_ids: [[16], [32]]}}\n"
        "backend: {type: llvm}\n"
    )
    return path


def test_the_passes_are_the_yamls_and_then_the_targets(yaml: Path) -> None:
    config = load_config(yaml)
    plan = plan_build(config, locate(config, progress=Progress()))
    names = [(planned.rewrite.name, planned.place) for planned in plan.passes]
    declared = [spec.name for spec in config.pass_list]
    assert [name for name, _ in names[: len(declared)]] == declared
    added = names[len(declared) :]
    assert added
    assert {place for _, place in added} == {"target tvm_llvm"}


def test_the_digest_is_repeatable_and_knows_no_place(yaml: Path, tmp_path: Path) -> None:
    first = digest_of(load_config(yaml))
    assert first == digest_of(load_config(yaml))
    assert first == digest_of(load_config(yaml, overrides=["workspace.path=elsewhere"]))


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "frontend.shape.input_ids=[[16],[48]]",
        "backend.dtype=bf16",
        "backend.compile.features=[]",
        "backend.compile.threads=7",
    ],
)
def test_what_decides_the_content_decides_the_digest(yaml: Path, override: str) -> None:
    assert digest_of(load_config(yaml)) != digest_of(load_config(yaml, overrides=[override]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{}"),
        ("generation_config.json", '{"eos_token_id": 5}'),
        ("chat_template.jinja", "{{ messages }}"),
    ],
)
def test_files_that_the_bundle_carries_decide_the_digest(
    yaml: Path, name: str, content: str
) -> None:
    before = digest_of(load_config(yaml))
    (yaml.parent / "checkpoint" / name).write_text(content)
    assert digest_of(load_config(yaml)) != before


def test_one_byte_of_a_weight_decides_the_digest(yaml: Path) -> None:
    before = digest_of(load_config(yaml))
    file = yaml.parent / "checkpoint" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert digest_of(load_config(yaml)) != before


def test_the_tools_decide_the_digest(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of(load_config(yaml))
    newer = {**tool_versions(), "onnx": "99"}
    monkeypatch.setattr(plan_module, "tool_versions", lambda: newer)
    assert digest_of(load_config(yaml)) != before


def test_the_tools_name_versions_and_our_own_sources() -> None:
    versions = tool_versions()
    assert versions["apache-tvm"] == "0.27.0.post1"
    assert versions["graphlower-sources"] == tool_versions()["graphlower-sources"]
    assert len(versions["graphlower-sources"]) == 16


def test_every_violation_of_target_and_order_at_once(yaml: Path) -> None:
    text = yaml.read_text().replace("{type: llvm}", "{type: llvm, compile: {threads: 0, fast: 1}}")
    yaml.write_text(text + "passes: [insert-strided-slice, {fold-mask: {}}]\n")
    config = load_config(yaml, overrides=["backend.compile.features=[avx3]"])
    checkpoint = locate(config, progress=Progress())
    with pytest.raises(CompilerErrors) as caught:
        plan_build(config, checkpoint)
    messages = [error.message for error in caught.value.errors]
    places = [str(error.where) for error in caught.value.errors]
    assert any("threads is 0" in message for message in messages)
    assert any("no compile option 'fast'" in message for message in messages)
    assert any("avx3" in message for message in messages)
    assert any("'insert-strided-slice'" in message for message in messages)
    assert any(place.endswith("model.yaml:3:10") for place in places)
    known = ("model.yaml:", "--set backend.compile.features", "target tvm_llvm")
    assert all(any(one in place for one in known) for place in places), places


def test_a_target_that_builds_nothing_is_refused(yaml: Path) -> None:
    config = load_config(yaml, target="torch")
    checkpoint = locate(config, progress=Progress())
    with pytest.raises(Exception, match="does not build bundles") as caught:
        plan_build(config, checkpoint)
    assert "compare" in str(caught.value)


def test_locating_without_hashing_leaves_the_digest_empty(yaml: Path) -> None:
    checkpoint = locate(load_config(yaml), progress=Progress(), is_hashed=False)
    assert checkpoint.digest == ""
    assert family_of(checkpoint).model_types == ("qwen2",)


def test_a_checkpoint_that_disagrees_with_its_config_is_refused(yaml: Path) -> None:
    change_config(yaml.parent / "checkpoint", intermediate_size=80)
    with pytest.raises((CheckpointError, CompilerErrors), match="mlp"):
        locate(load_config(yaml), progress=Progress())


def test_an_unknown_target_is_refused_by_the_configuration(yaml: Path) -> None:
    with pytest.raises(ConfigError, match="lvm"):
        load_config(yaml, target="lvm")


@pytest.mark.slow
def test_built_passes_are_those_of_the_plan(built_bundles: BuiltBundles) -> None:
    config = built_bundles.config()
    plan = plan_build(config, locate(config, progress=Progress()))
    ran = list(dict.fromkeys(record.name for record in built_bundles.result().passes))
    assert ran == list(dict.fromkeys(planned.rewrite.name for planned in plan.passes))
    assert plan.digest == built_bundles.result().digest
