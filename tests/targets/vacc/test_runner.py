"""A tiny Qwen2 in the emulator: torch's numbers within float16's rounding, and torch's tokens."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from stored_weights_model import LIMIT, torch_logits, torch_model
from vacc_bundles import FLOATS, INT8, VaccBundles, VaccModel

from compiler.contracts.errors import MachineLacks, RunError, TargetError
from compiler.contracts.taps import LAYER_TAPS, Observer, Tap, taps_of
from compiler.contracts.weights import CheckpointRef
from targets.vacc.driver import LoadedPartition
from targets.vacc.emulator import EmulatedPartition, Emulator
from targets.vacc.runner import VaccRunner
from targets.vacc.target import VaccTarget

pytestmark = pytest.mark.slow

# Longer than the window of 32: a whole one, and one that is padded.
PROMPT = [7 * index % 113 for index in range(37)]


@pytest.fixture
def runner(vacc_bundles: VaccBundles) -> VaccRunner:
    return VaccRunner(vacc_bundles.bundle())


@pytest.fixture(scope="module", params=["fp16", "int8"])
def built(request: pytest.FixtureRequest, vacc_bundles: VaccBundles) -> VaccModel:
    chosen = INT8 if request.param == "int8" else FLOATS
    vacc_bundles.bundle(chosen)
    return chosen


def test_logits_are_torchs_and_so_are_greedy_tokens(
    vacc_bundles: VaccBundles, built: VaccModel
) -> None:
    model = torch_model(vacc_bundles.checkpoint(), is_int8=built is INT8)
    ours = VaccRunner(vacc_bundles.bundle(built))
    tokens = list(PROMPT)
    logits = ours.extend(tokens)
    for _ in range(10):
        wanted = torch_logits(model, tokens)[-1]
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=LIMIT * np.abs(wanted).max())
        assert int(logits.argmax()) == int(wanted.argmax())
        tokens.append(int(logits.argmax()))
        logits = ours.extend(tokens[-1:])


def test_int8_weights_stay_int8(vacc_bundles: VaccBundles) -> None:
    program = vacc_bundles.bundle(INT8).path / "decode_48_rank0" / "vacc_decode_0.tiles"
    text = program.read_text(encoding="utf-8")
    assert len(re.findall(r"  weight i8\[\d+,\d+\] model\.layers", text)) == 7 * 2
    assert text.count("  run quantized_linear_") == 7 * 2


def test_rewinding_forgets(runner: VaccRunner) -> None:
    first = runner.extend(PROMPT)
    runner.rewind(5)
    keys, values = runner.cache_rows(0, 0, 37)
    assert keys[:5].all(1).all()
    assert not keys[5:].any()
    assert not values[5:].any()
    runner.extend([9, 9])
    runner.rewind(0)
    np.testing.assert_array_equal(runner.extend(PROMPT), first)
    with pytest.raises(RunError, match="do not fit the context of 48"):
        runner.extend([1] * 12)


PROGRAM = """
import json, sys
from pathlib import Path
from compiler.stages.execute import GenerateOptions
from compiler.workflows.run import open_session

with open_session(Path(sys.argv[1])) as session:
    tokens = session.complete(sys.argv[2], GenerateOptions(max_tokens=6)).tokens
heavy = [name for name in ("torch", "transformers", "tvm", "onnx") if name in sys.modules]
print(json.dumps({"tokens": tokens, "heavy": heavy}))
"""


def test_a_new_process_runs_from_the_bundle_alone(
    vacc_bundles: VaccBundles, runner: VaccRunner
) -> None:
    prompt = PROMPT[:9]
    text = " ".join(f"t{token}" for token in prompt)
    found = json.loads(vacc_bundles.python(PROGRAM, vacc_bundles.bundle().path, text, env={}))
    logits, wanted = runner.extend(prompt), []
    for _ in range(6):
        wanted.append(int(logits.argmax()))
        logits = runner.extend(wanted[-1:])
    assert found == {"tokens": wanted, "heavy": []}


class Watching(Observer):
    """Keeps what it sees, and puts other values in place of one tap."""

    def __init__(self, replaced: Tap | None = None) -> None:
        self.seen: dict[Tap, np.ndarray] = {}
        self.replaced = replaced

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        self.seen[tap] = rows.copy()
        # A norm would not see rows that are all scaled alike.
        return rows[:, ::-1] if tap == self.replaced else None


def test_every_tap_is_shown_and_watching_changes_nothing(runner: VaccRunner) -> None:
    plain = runner.extend(PROMPT[:9])
    runner.rewind(0)
    watching = Watching()
    runner.observe(watching)
    np.testing.assert_array_equal(runner.extend(PROMPT[:9]), plain)
    assert set(watching.seen) == set(taps_of(2))
    assert {rows.shape for tap, rows in watching.seen.items() if tap.point == "act"} == {(9, 96)}
    assert watching.seen[Tap(0, "k_rot")].shape == (9, 32)
    order = [tap.point for tap in watching.seen if tap.layer == 0]
    assert sorted(order, key=LAYER_TAPS.index)[-6:] == order[-6:]
    np.testing.assert_array_equal(watching.seen[Tap(None, "logits")][0], plain)
    keys, values = runner.cache_rows(1, 0, 9)
    np.testing.assert_array_equal(watching.seen[Tap(1, "keys")], keys)
    np.testing.assert_array_equal(watching.seen[Tap(1, "values")], values)
    np.testing.assert_array_equal(watching.seen[Tap(1, "k_rot")], keys)


def test_what_replaces_a_tap_is_gone_on_with(runner: VaccRunner) -> None:
    plain = Watching()
    runner.observe(plain)
    runner.extend(PROMPT[:9])
    for tap in (Tap(0, "q_rot"), Tap(0, "keys"), Tap(0, "resid1")):
        runner.rewind(0)
        changed = Watching(tap)
        runner.observe(changed)
        runner.extend(PROMPT[:9])
        differ = {
            one.point
            for one, rows in changed.seen.items()
            if one.layer == 0 and not np.array_equal(rows, plain.seen[one])
        }
        later = LAYER_TAPS.index("attn" if tap.point != "resid1" else "norm2")
        assert differ == set(LAYER_TAPS[later:]), tap


class Counting(Emulator):
    """Keeps the partitions that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[EmulatedPartition] = []

    def load(self, compiled: bytes, *, where: str) -> LoadedPartition:
        part = EmulatedPartition(compiled.decode(), where=where)
        self.loaded.append(part)
        return part


def test_every_run_of_the_text_is_executed(vacc_bundles: VaccBundles) -> None:
    driver = Counting()
    VaccRunner(vacc_bundles.bundle(), driver=driver).extend(PROMPT[:9])
    (prefill,) = [part for part in driver.loaded if part.runs]
    assert prefill.program.name == "vacc_prefill_0"
    wanted = [run.module for run in prefill.program.runs]
    assert prefill.runs == {module: wanted.count(module) for module in wanted}


class Absent(Emulator):
    name = "absent"

    def probe(self) -> tuple[str, ...]:
        return ("there is no card",)


def test_a_driver_that_cannot_run_says_why(vacc_bundles: VaccBundles) -> None:
    with pytest.raises(MachineLacks, match="driver 'absent' cannot run here: there is no card"):
        VaccRunner(vacc_bundles.bundle(), driver=Absent())


class Refusing(Emulator):
    def load(self, compiled: bytes, *, where: str) -> LoadedPartition:
        broken = compiled.replace(b"0:+64] rows ids", b"8:+64] rows ids")
        assert broken != compiled
        return EmulatedPartition(broken.decode(), where=where)


def test_what_the_device_refuses_is_said_as_it_is(vacc_bundles: VaccBundles) -> None:
    broken = VaccRunner(vacc_bundles.bundle(), driver=Refusing())
    with pytest.raises(TargetError, match="8:72 of table is outside its 64") as caught:
        broken.extend([1, 2])
    assert caught.value.where == "vacc_prefill_0: embedding_0 for model.embed_tokens"


def test_only_bundles_are_opened(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="opens bundles, not CheckpointRef"):
        VaccTarget().open(CheckpointRef(tmp_path, {}, {}, ""))
