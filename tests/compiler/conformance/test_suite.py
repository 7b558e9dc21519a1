"""The suite finds the fault of each broken target by the check that is about it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from built_bundles import in_this_process

from compiler.conformance import (
    ConformanceReport,
    SuiteRequest,
    block_build,
    check_names,
    run_suite,
)
from compiler.contracts.errors import ConfigError, MachineLacks
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Probe
from targets.onnxruntime.target import OnnxRuntimeTarget


@pytest.fixture
def here(installed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process is started but for what is opened in a new one."""

    def run_parallel(work, calls, *, workers):
        assert workers >= 1
        return [work(*call) for call in calls]

    monkeypatch.setattr(block_build, "run_parallel", run_parallel)
    with in_this_process():
        yield


def run(target: str, *only: str) -> ConformanceReport:
    return run_suite(SuiteRequest(target, only=only), progress=Progress())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("target", "check", "said", "sound"),
    [
        ("without-bias", "linear-bias", "biases on q, k and v, fp32: not what", ("linear",)),
        ("without-bias", "model", "not what torch gives", ("errors",)),
        ("sees-padding", "windows", "not what torch gives", ("taps",)),
        ("sees-padding", "padding", "not so: padding changes nothing", ("reset",)),
        ("stale-after-rewind", "rewind", "five rewinds", ("windows",)),
        ("stale-after-rewind", "reset", "not so: a rewind forgets", ("padding",)),
        ("changed-by-watching", "taps", "its logits are others while it is watched", ()),
        ("other-names", "taps", "it shows taps under other names", ()),
        ("unchecked", "errors", "was not refused as it must be", ("model",)),
        ("undetermined", "determinism", "lowered twice gives other files", ("linear",)),
        ("accepts-options", "constraints", "it accepts options that it does not have", ()),
        ("one-at-a-time", "constraints", "it says only one of two options", ("probe",)),
        ("accepts-dtypes", "fp16", "it raised an error", ("fp32",)),
        ("raising", "constraints", "it raised what is no CompilerError", ()),
    ],
)
def test_a_fault_is_named_by_its_check(
    target: str, check: str, said: str, sound: Sequence[str]
) -> None:
    report = run(target, check, *sound)
    (one,) = [found for found in report.checks if found.name == check]
    assert one.status == "fail"
    assert said in one.said
    assert all((one.expected, one.came, one.look_at)), one
    others = {found.name: found for found in report.checks if found.name != check}
    assert set(others) == set(sound)
    assert all(found.status != "fail" for found in others.values()), others
    assert not report.passed


@pytest.mark.usefixtures("here")
def test_what_the_example_does_passes_and_what_it_does_not_is_not_counted() -> None:
    only = ("constraints", "bf16", "taps", "rewind", "padding")
    report = run("example", *only)
    found = {check.name: check for check in report.checks}
    assert {name: one.status for name, one in found.items()} == {
        "constraints": "pass",
        "bf16": "not-applicable",
        "rewind": "pass",
        "padding": "pass",
        "taps": "not-shown",
    }
    assert found["bf16"].said == "its constraints refuse it: backend.dtype is not fp32"
    assert found["taps"].said == "ExampleRunner shows no taps"
    assert (report.owner, report.dtype, report.passed) == ("graphlower-example", "fp32", True)
    assert not run("example", "taps").passed


@pytest.mark.usefixtures("here")
def test_another_process_is_another() -> None:
    report = run("of-this-process", "reload")
    (one,) = report.checks
    assert (one.status, one.said) == ("fail", "another process gives other logits")


@pytest.mark.usefixtures("here")
def test_a_target_that_raises_fails_and_the_suite_goes_on() -> None:
    report = run("raising", "model", "windows", "errors")
    assert [check.status for check in report.checks] == ["fail"] * 3
    assert "no such key" in report.checks[0].came


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="there is no check 'windws'") as caught:
        run("torch", "windws")
    assert str(caught.value.hint).startswith("did you mean 'windows'?")
    with pytest.raises(ConfigError, match="no target is named 'torhc'"):
        run("torhc")


def test_a_folder_that_is_there_is_not_written(tmp_path: Path) -> None:
    request = SuiteRequest("torch", only=("probe",), keep=tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        run_suite(request, progress=Progress())


def test_a_target_that_cannot_run_here_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Probe(can_build=False, can_run=False, missing=("the card is not plugged in",))
    monkeypatch.setattr(OnnxRuntimeTarget, "probe", lambda _: lacking)
    with pytest.raises(MachineLacks, match="cannot build here: the card is not plugged in"):
        run("onnxruntime", "probe")


def test_a_target_that_builds_nothing_is_tried_on_the_rest() -> None:
    report = run("torch", "constraints", "linear", "determinism", "reload", "errors", "taps")
    statuses = {check.name: check.status for check in report.checks}
    assert statuses == {
        "constraints": "pass",
        "determinism": "not-applicable",
        "linear": "not-applicable",
        "reload": "not-applicable",
        "errors": "pass",
        "taps": "pass",
    }
    assert set(check_names()) > set(statuses)
