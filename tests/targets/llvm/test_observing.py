"""Taps of a running bundle: transformers' values, nothing changed by watching, forced values used.

Every bundle here is built once a session; what a tap must show comes from hooks on transformers.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from built_bundles import (
    TINY,
    BuiltBundles,
    TinyModel,
    in_this_process,
    write_word_tokenizer,
    write_yaml,
)
from checkpoint_factory import change_config, write_checkpoint
from compiler_process import run_python
from reference_model import load_reference
from safetensors.numpy import load_file

from compiler.config import load_config
from compiler.contracts.errors import TargetError
from compiler.contracts.taps import FIRST_TAPS, LAST_TAPS, LAYER_TAPS, Observer, Tap, taps_of
from compiler.relax.lean import import_tvm_ffi
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.build import build
from targets.llvm.features import detect, has_tiles
from targets.llvm.runner import LLVMRunner
from targets.llvm.tensor_memory import memory_of

MHA = TinyModel("mha", kv_heads=4, tied=True)
# Kernels that hold every tap, whatever this machine has; those of tiles make gate and up one.
PLAIN = ("avx2", "f16c", "fma")
BF16 = TinyModel("bf16", stored="bfloat16", dtype="bf16", tied=True, features=PLAIN)
TILED = TinyModel("tiled", stored="bfloat16", dtype="bf16", tied=True)
QWEN3 = TinyModel("qwen3", variant="qwen3")
JOINED = TinyModel("joined", added=("fuse-qkv", "fuse-gate-up"))
INT8 = TinyModel("int8", dtype="bf16", added=("annotate-int8-qdq",), features=PLAIN)

TOKENS = np.random.default_rng(11).integers(0, TINY.vocabulary, 41).tolist()
# A window that is full, one of 5 real tokens, and decode.
CALLS = (slice(0, 32), slice(32, 37), slice(37, 38), slice(38, 39))

Seen = dict[Tap, np.ndarray]
Answer = Callable[[Tap, np.ndarray], np.ndarray | None]


class Recorder(Observer):
    """Keeps what it is shown, in order, and answers as it is told."""

    def __init__(self, answer: Answer = lambda _tap, _rows: None) -> None:
        self.seen: Seen = {}
        self.order: list[Tap] = []
        self._answer = answer

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        self.seen[tap] = rows.copy()
        self.order.append(tap)
        return self._answer(tap, rows)


def force(wanted: Tap, value: np.ndarray) -> Recorder:
    """A recorder that puts `value` in place of one tap."""
    return Recorder(lambda tap, _rows: value if tap == wanted else None)


def read(runner: LLVMRunner, observer: Observer | None, calls: Sequence[slice]) -> list[np.ndarray]:
    """The logits of each call, from the first position on."""
    runner.rewind(0)
    runner.observe(observer)
    return [runner.extend(TOKENS[call]) for call in calls]


def watch(runner: LLVMRunner, calls: Sequence[slice]) -> list[Recorder]:
    """A recorder for each call."""
    runner.rewind(0)
    recorders = [Recorder() for _ in calls]
    for recorder, call in zip(recorders, calls, strict=True):
        runner.observe(recorder)
        runner.extend(TOKENS[call])
    return recorders


def by_kernels(layers: int) -> list[Tap]:
    """Every tap in the order of this target's kernels: the cache is written before q is read."""
    swapped = {"q_rot": "k_rot", "k_rot": "q_rot"}
    return [Tap(tap.layer, swapped.get(tap.point, tap.point)) for tap in taps_of(layers)]


def draw(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def opened(built_bundles: BuiltBundles, model: TinyModel = TINY) -> LLVMRunner:
    return LLVMRunner(open_bundle(built_bundles.bundle(model)))


@pytest.fixture
def runner(built_bundles: BuiltBundles) -> LLVMRunner:
    return opened(built_bundles)


def build_with(
    folder: Path, checkpoint: Path, *, model: TinyModel, passes: Sequence[object] | None = None
) -> LLVMRunner:
    """A bundle of what a `TinyModel` cannot say."""
    path = write_yaml(folder / "model.yaml", model, checkpoint)
    if passes is not None:
        tree = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**tree, "passes": passes}), encoding="utf-8")
    with in_this_process():
        return LLVMRunner(open_bundle(build(load_config(path)).bundle))


def module_taps(layers: int) -> Iterator[tuple[str, Tap | None, Tap]]:
    """Module, the tap that it takes (None where another leaves it), the tap that it leaves."""
    yield "model.embed_tokens", None, Tap(None, "embed")
    yield "model.norm", Tap(layers - 1, "resid2"), Tap(None, "norm")
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        before = Tap(layer - 1, "resid2") if layer else None
        yield f"{stem}.input_layernorm", before, Tap(layer, "norm1")
        for name in ("q", "k", "v"):
            yield f"{stem}.self_attn.{name}_proj", None, Tap(layer, name)
        yield f"{stem}.self_attn.o_proj", Tap(layer, "attn"), Tap(layer, "o")
        yield f"{stem}.post_attention_layernorm", Tap(layer, "resid1"), Tap(layer, "norm2")
        yield f"{stem}.mlp.gate_proj", None, Tap(layer, "gate")
        yield f"{stem}.mlp.up_proj", None, Tap(layer, "up")
        yield f"{stem}.mlp.down_proj", Tap(layer, "act"), Tap(layer, "down")


def reference_taps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every tap of one pass of transformers over TOKENS; the cache's are k_rot and v."""
    model = load_reference(folder)
    named = dict(model.named_modules())
    found: Seen = {}

    def keep(tap: Tap | None, value: torch.Tensor) -> None:
        if tap is not None:
            found[tap] = value[0].reshape(len(TOKENS), -1).detach().numpy().copy()

    def on(module: torch.nn.Module, taken: Tap | None, left: Tap) -> None:
        def hook(_module: object, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            keep(taken, given[0])
            keep(left, result)

        module.register_forward_hook(hook)

    for name, taken, left in module_taps(model.config.num_hidden_layers):
        on(named[name], taken, left)
    rotated = _record_rotation(sys.modules[type(model).__module__], monkeypatch)
    with torch.no_grad():
        keep(Tap(None, "logits"), model(torch.tensor([TOKENS]), use_cache=False).logits)
    for index, (q, k) in enumerate(rotated):
        keep(Tap(index, "q_rot"), q.transpose(1, 2))
        keep(Tap(index, "k_rot"), k.transpose(1, 2))
        found[Tap(index, "keys")] = found[Tap(index, "k_rot")]
        found[Tap(index, "values")] = found[Tap(index, "v")]
    return found


def _record_rotation(
    module: object, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the model's `apply_rotary_pos_emb` returns, layer by layer."""
    rotate = module.apply_rotary_pos_emb  # type: ignore[attr-defined]
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recording(*arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(rotate(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(module, "apply_rotary_pos_emb", recording)
    return found


def assert_transformers(
    runner: LLVMRunner,
    reference: Mapping[Tap, np.ndarray],
    *,
    relative: float = 0.0,
    hidden: Sequence[str] = (),
) -> None:
    """Every tap of every call, once, with the reference's rows; windows padded and full, decode.

    Args:
        runner: Of the bundle.
        reference: What transformers has.
        relative: Of a tap's largest entry, what roundings may add to the error.
        hidden: Points that no kernel holds.
    """
    for call, recorder in zip(CALLS, watch(runner, CALLS), strict=True):
        shown = [tap for tap in by_kernels(runner.layers) if tap.point not in hidden]
        assert recorder.order == shown
        for tap, rows in recorder.seen.items():
            wanted = reference[tap][call]
            wanted = wanted[-1:] if tap.point == "logits" else wanted
            assert rows.dtype == np.float32
            np.testing.assert_allclose(
                rows,
                wanted,
                rtol=0,
                atol=1e-4 + relative * np.abs(wanted).max(),
                err_msg=f"{tap} of {call}",
                strict=True,
            )


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY, MHA, BF16, QWEN3], ids=lambda model: model.name)
def test_every_tap_is_what_transformers_computes(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch, model: TinyModel
) -> None:
    reference = reference_taps(built_bundles.checkpoint(model), monkeypatch)
    # A cache in bf16 rounds a key by up to 2^-9 of itself, and so what follows from it.
    relative = 2.0**-7 if model.dtype == "bf16" else 0.0
    assert_transformers(opened(built_bundles, model), reference, relative=relative)


@pytest.mark.slow
@pytest.mark.skipif(not has_tiles(detect()), reason="this CPU has no AMX")
def test_tiles_show_all_but_gate_and_up(
    built_bundles: BuiltBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_taps(built_bundles.checkpoint(TILED), monkeypatch)
    # Prefill rounds what its products multiply, each to 2^-9 of itself.
    runner = opened(built_bundles, TILED)
    assert_transformers(runner, reference, relative=2.0**-5, hidden=("gate", "up"))


@pytest.mark.slow
def test_every_tap_of_a_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type="llama", layers=1)
    change_config(checkpoint, eos_token_id=None)
    write_word_tokenizer(checkpoint, TINY.vocabulary)
    runner = build_with(tmp_path, checkpoint, model=TinyModel("llama", layers=1))
    assert runner.layers == 1
    assert_transformers(runner, reference_taps(checkpoint, monkeypatch))


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY, BF16, JOINED, INT8], ids=lambda model: model.name)
@pytest.mark.parametrize("answer", ["nothing", "its input"])
def test_watching_changes_no_bit(
    built_bundles: BuiltBundles, model: TinyModel, answer: str
) -> None:
    runner = opened(built_bundles, model)
    wanted = read(runner, None, CALLS)
    recorder = Recorder(lambda _tap, rows: None if answer == "nothing" else rows)
    found = read(runner, recorder, CALLS)
    assert len(recorder.order) == len(CALLS) * len(recorder.seen)
    for one, other in zip(wanted, found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_joined_weights_leave_their_projections_out(built_bundles: BuiltBundles) -> None:
    runner = opened(built_bundles, JOINED)
    plain = watch(opened(built_bundles), CALLS)
    lacking = ("q", "k", "v", "gate", "up")
    for recorder, other in zip(watch(runner, CALLS), plain, strict=True):
        assert recorder.order == [tap for tap in by_kernels(2) if tap.point not in lacking]
        for tap, rows in recorder.seen.items():
            assert np.abs(rows - other.seen[tap]).max() < 1e-4, str(tap)


@pytest.mark.slow
def test_int8_weights_hide_nothing(built_bundles: BuiltBundles) -> None:
    runner = opened(built_bundles, INT8)
    weights = load_file(open_bundle(built_bundles.bundle(INT8)).path / "params/rank0.safetensors")
    for recorder in watch(runner, CALLS):
        assert recorder.order == by_kernels(2)
        for point, name, taken in (
            ("q", "self_attn.q_proj", "norm1"),
            ("k", "self_attn.k_proj", "norm1"),
            ("v", "self_attn.v_proj", "norm1"),
            ("o", "self_attn.o_proj", "attn"),
            ("gate", "mlp.gate_proj", "norm2"),
            ("up", "mlp.up_proj", "norm2"),
            ("down", "mlp.down_proj", "act"),
        ):
            stem = f"model.layers.1.{name}"
            weight = weights[f"{stem}.weight"] * weights[f"{stem}.weight_scale"][:, None]
            bias = weights.get(f"{stem}.bias", np.float32(0))
            wanted = recorder.seen[Tap(1, taken)] @ weight.T + bias
            assert np.abs(recorder.seen[Tap(1, point)] - wanted).max() < 1e-4, point


@pytest.mark.slow
def test_16_bit_arithmetic_is_watched_and_its_residual_not_replaced(
    built_bundles: BuiltBundles, tmp_path: Path
) -> None:
    fused = ("fuse-attention", "fuse-rms-norm", "fuse-rotary", "fuse-silu-mul")
    model = TinyModel("narrow", dtype="bf16", added=fused)
    passes = json.loads(
        write_yaml(tmp_path / "model.yaml", model, tmp_path).read_text(encoding="utf-8")
    )["passes"]
    passes.append({"cast-dtype": {"dtype": "bfloat16"}})
    runner = build_with(tmp_path, built_bundles.checkpoint(), model=model, passes=passes)
    wanted = read(runner, None, CALLS)
    plain = watch(opened(built_bundles), CALLS)
    for recorder, other in zip(watch(runner, CALLS), plain, strict=True):
        assert recorder.order == [tap for tap in by_kernels(2) if tap.point not in ("o", "down")]
        for tap, rows in recorder.seen.items():
            scale = np.abs(other.seen[tap]).max()
            assert np.abs(rows - other.seen[tap]).max() < 0.05 * scale, str(tap)
    # Values of 16 bits are replaced where they lie.
    calls = CALLS[1:2]
    recorder = force(Tap(1, "q"), np.zeros((5, 64), np.float32))
    read(runner, recorder, calls)
    assert not recorder.seen[Tap(1, "q_rot")].any()
    for tap in (Tap(None, "embed"), Tap(0, "resid1"), Tap(0, "resid2"), Tap(1, "resid1")):
        with pytest.raises(TargetError, match=f"^{tap} cannot be replaced: the norm"):
            read(runner, force(tap, np.ones((5, 64), np.float32)), calls)
    last = force(Tap(1, "resid2"), np.ones((5, 64), np.float32))
    read(runner, last, calls)
    found = read(runner, None, CALLS)
    for one, other in zip(wanted, found, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("call", [CALLS[1], CALLS[2]], ids=["prefill", "decode"])
def test_a_forced_residual_is_normed_and_added(
    built_bundles: BuiltBundles, runner: LLVMRunner, call: slice
) -> None:
    tap = Tap(1, "resid1")
    tokens = call.stop - call.start
    forced = draw((tokens, TINY.hidden))
    recorder = force(tap, forced)
    plain = read(runner, None, [slice(0, call.start), call])[-1]
    read(runner, None, [slice(0, call.start)])
    runner.observe(recorder)
    logits = runner.extend(TOKENS[call])
    weights = load_file(built_bundles.checkpoint() / "model.safetensors")
    weight = weights["model.layers.1.post_attention_layernorm.weight"]
    mean = (forced**2).mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        recorder.seen[Tap(1, "norm2")], forced / np.sqrt(mean + 1e-6) * weight, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        recorder.seen[Tap(1, "resid2")], forced + recorder.seen[Tap(1, "down")], rtol=0, atol=1e-6
    )
    assert np.abs(logits - plain).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY, BF16, INT8], ids=lambda model: model.name)
def test_every_forced_value_is_what_comes_next(
    built_bundles: BuiltBundles, model: TinyModel
) -> None:
    """Taps before the forced one are as they were; what reads it is not."""
    runner = opened(built_bundles, model)
    order = by_kernels(2)

    def stored(rows: np.ndarray) -> np.ndarray:
        """As the cache holds them."""
        return rows.astype(ml_dtypes.bfloat16).astype(np.float32) if model != TINY else rows

    (plain,) = watch(runner, CALLS[1:2])
    for index, tap in enumerate(order[:-1]):
        forced = draw(plain.seen[tap].shape)
        recorder = force(tap, forced)
        logits = read(runner, recorder, CALLS[1:2])[0]
        assert recorder.order == order
        for earlier in order[: index + 1]:
            assert np.array_equal(recorder.seen[earlier], plain.seen[earlier]), f"{tap}: {earlier}"
        assert np.abs(logits - plain.seen[Tap(None, "logits")][0]).max() > 1e-5, str(tap)
        if tap.point == "k_rot":
            assert np.array_equal(recorder.seen[Tap(tap.layer, "keys")], stored(forced))
        if tap.point == "v":
            assert np.array_equal(recorder.seen[Tap(tap.layer, "values")], stored(forced))


@pytest.mark.slow
def test_forced_logits_are_the_result(runner: LLVMRunner) -> None:
    forced = draw((1, TINY.vocabulary))
    found = read(runner, force(Tap(None, "logits"), forced), CALLS)
    assert all(np.array_equal(logits, forced[0]) for logits in found)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["keys", "values"])
def test_forced_rows_stay_in_the_cache(runner: LLVMRunner, point: str) -> None:
    plain = read(runner, None, CALLS[:3])[2]
    read(runner, None, CALLS[:1])
    kept = runner.cache_rows(1, 0, 32)
    forced = draw((5, 32))
    runner.observe(force(Tap(1, point), forced))
    runner.extend(TOKENS[CALLS[1]])
    runner.observe(None)
    assert np.array_equal(runner.cache_rows(1, 32, 37)[("keys", "values").index(point)], forced)
    assert all(
        np.array_equal(one, other)
        for one, other in zip(kept, runner.cache_rows(1, 0, 32), strict=True)
    )
    assert np.abs(runner.extend(TOKENS[CALLS[2]]) - plain).max() > 1e-3


@pytest.mark.slow
def test_cache_rows_are_what_calls_wrote(runner: LLVMRunner) -> None:
    recorders = watch(runner, CALLS)
    for layer in range(runner.layers):
        keys, values = runner.cache_rows(layer, 0, 39)
        for point, rows in (("keys", keys), ("values", values)):
            written = [recorder.seen[Tap(layer, point)] for recorder in recorders]
            assert np.array_equal(rows, np.concatenate(written))
            assert rows.dtype == np.float32
    runner.cache_rows(1, 0, 39)[0][...] = 0
    assert runner.cache_rows(1, 0, 39)[0].any()
    assert runner.cache_rows(0, 4, 4)[0].shape == (0, 32)
    with pytest.raises(AssertionError, match=r"rows \[0, 49\) of 48"):
        runner.cache_rows(0, 0, 49)


@pytest.mark.slow
def test_only_the_points_that_are_asked_for(runner: LLVMRunner) -> None:
    recorder = Recorder()
    recorder.points = frozenset({"resid2", "logits"})
    read(runner, recorder, CALLS[1:2])
    assert recorder.order == [Tap(0, "resid2"), Tap(1, "resid2"), Tap(None, "logits")]


@pytest.mark.slow
def test_two_windows_are_two_calls_of_every_tap(runner: LLVMRunner) -> None:
    recorder = Recorder()
    read(runner, recorder, [slice(0, 40)])
    assert recorder.order == by_kernels(2) * 2
    assert recorder.seen[Tap(0, "q")].shape == (8, TINY.hidden)


@pytest.mark.slow
def test_an_end_of_watching(runner: LLVMRunner) -> None:
    first, second = Recorder(), Recorder()
    read(runner, first, CALLS[1:2])
    count = len(first.order)
    read(runner, second, CALLS[1:2])
    read(runner, None, CALLS[1:2])
    assert (len(first.order), len(second.order)) == (count, count)


class Stop(BaseException):
    """What no handler of `Exception` catches, as an interrupt."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ValueError, Stop])
@pytest.mark.parametrize("point", [*FIRST_TAPS, *LAYER_TAPS, *LAST_TAPS])
def test_what_an_observer_raises_is_raised(
    runner: LLVMRunner, kind: type[BaseException], point: str
) -> None:
    wanted = read(runner, None, CALLS)
    error = kind("as it is")

    def answer(tap: Tap, _rows: np.ndarray) -> None:
        if tap.point == point:
            raise error

    with pytest.raises(kind, match=r"^as it is$") as caught:
        read(runner, Recorder(answer), CALLS)
    assert caught.value is error
    assert runner.length == 0
    for one, other in zip(wanted, read(runner, None, CALLS), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_another_shape_is_refused(runner: LLVMRunner) -> None:
    with pytest.raises(AssertionError, match=r"layers.0/q is \(5, 64\), was given \(1, 64\)"):
        read(runner, force(Tap(0, "q"), draw((1, 64))), CALLS[1:2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_memory_is_the_tensors_own(dtype: type[np.floating]) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    memory = memory_of(import_tvm_ffi().from_dlpack(array))
    memory[1] = 7
    assert array.tolist() == [[0, 1, 2], [7, 7, 7]]


def test_bfloat16_memory_is_the_tensors_own() -> None:
    ffi = import_tvm_ffi()
    array = np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    tensor = view(ffi.from_dlpack(array), ffi.Shape((2, 2)), ffi.dtype("bfloat16"), 0)
    memory = memory_of(tensor)
    assert memory.astype(np.float32).tolist() == [[0, 1], [2, 3]]
    memory[0] = 1 + 2**-9
    assert array.view(ml_dtypes.bfloat16).tolist() == [1, 1, 2, 3]


def test_integers_are_no_values() -> None:
    tensor = import_tvm_ffi().from_dlpack(np.zeros(4, np.int32))
    with pytest.raises(TargetError, match="a value of dtype int32 cannot be shown as float32"):
        memory_of(tensor)


LEAN = """
import json, sys
from pathlib import Path
from compiler.contracts.taps import Observer, taps_of
from compiler.stages.open_bundle import open_bundle
from targets.llvm.target import LLVMTarget
from targets.llvm.tensor_memory import memory_of

class Counter(Observer):
    count = 0
    def see(self, tap, rows):
        self.count += 1

runner = LLVMTarget().open(open_bundle(Path(sys.argv[1])))
counter = Counter()
runner.observe(counter)
runner.extend([1, 2, 3])
runner.extend([4])
runner.cache_rows(1, 0, 4)
print(json.dumps({
    "count": counter.count, "taps": len(taps_of(runner.layers)),
    "heavy": [name for name in ("torch", "transformers", "tvm", "onnx") if name in sys.modules],
}))
"""


@pytest.mark.slow
def test_a_lean_process_observes(built_bundles: BuiltBundles, tmp_path: Path) -> None:
    found = run_python(LEAN, built_bundles.bundle(), cwd=tmp_path)
    assert found == {"count": 74, "taps": 37, "heavy": []}
