"""Each kernel against a float16-storage model of its composite, on chips of several sizes.

Storage is float16, arithmetic float32: what is compared was rounded once, so two orders of
addition differ by at most one unit in the last place.
"""

import contextlib
import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from tile_runs import PROFILE, program_of, random_arrays, run_kernel, run_text, small_chip

from compiler.contracts.errors import TargetError
from targets.vacc.device import DeviceProfile
from targets.vacc.emulator import EmulatedPartition
from targets.vacc.kernels.attention import AttentionShape, attention
from targets.vacc.kernels.cache import cache_update
from targets.vacc.kernels.linear import LinearShape, linear
from targets.vacc.kernels.move import columns, gather, scaled_rows, swapped
from targets.vacc.kernels.rotary import angles, rotary
from targets.vacc.kernels.rows import binary, rms_norm, rounded_tokens
from targets.vacc.tile_program import Kernel
from targets.vacc.tile_text import tile_text

Arrays = Mapping[str, np.ndarray]
PAST, VALID = 5, 7
# A unit in the last place of float16 below 1, and half of one for values rounded from close ones.
ULP = 2.0**-10


def wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)


def widened(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Codes [.., k] times scales [.., g]: each k / g of a row share one."""
    return wide(codes) * np.repeat(wide(scales), codes.shape[-1] // scales.shape[-1], axis=-1)


def rounded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and float32 scales of each row, as the contract says; a row of zeros has scale 1."""
    values = values.astype(np.float32)
    scales = np.abs(values).max(axis=-1, keepdims=True) / np.float32(127)
    scales = np.where(scales == 0, np.float32(1), scales)
    return np.round(values / scales).astype(np.int8), scales


def linear_model(arrays: Arrays) -> np.ndarray:
    weight, scale = wide(arrays["weight"]), arrays.get("scale", np.ones(1))
    if scale.ndim == 2:
        weight, scale = widened(arrays["weight"], scale), np.ones(1)
    return wide(arrays["x"]) @ weight.T * scale + arrays.get("bias", 0.0)


def tokens_model(arrays: Arrays) -> np.ndarray:
    return widened(*rounded(arrays["x"]))


def table_model(arrays: Arrays) -> np.ndarray:
    return widened(arrays["table"], arrays["scale"])[arrays["indices"]]


def norm_model(arrays: Arrays) -> np.ndarray:
    x = wide(arrays["x"])
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * arrays["weight"]


def silu_model(arrays: Arrays) -> np.ndarray:
    gate = wide(arrays["a"])
    return gate / (1 + np.exp(-gate)) * arrays["b"]


def rotary_model(arrays: Arrays) -> np.ndarray:
    x = wide(arrays["x"])
    if x.shape[1] != len(arrays["cos"]):
        x = x.transpose(1, 0, 2)
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * arrays["cos"] + turned * arrays["sin"]


def angle_model(arrays: Arrays) -> np.ndarray:
    product = arrays["positions"][:, None].astype(np.float32) * arrays["frequencies"]
    return np.cos(np.concatenate([product, product], axis=-1))


def attention_model(arrays: Arrays, *, window: int = 0, scale: float = 0.25) -> np.ndarray:
    q, keys, values = (wide(arrays[name]) for name in ("q", "keys", "values"))
    if "keys_scale" in arrays:
        keys, values = (
            widened(arrays[name], arrays[f"{name}_scale"]) for name in ("keys", "values")
        )
    heads, tokens, width = q.shape
    group = heads // keys.shape[1]
    found = np.zeros((tokens, heads * width))
    for head in range(heads):
        for row in range(VALID):
            last = PAST + row + 1
            first = max(0, last - window) if window else 0
            scores = keys[first:last, head // group] @ q[head, row] * scale
            weights = np.exp(scores - scores.max())
            mixed = weights @ values[first:last, head // group] / weights.sum()
            found[row, head * width : (head + 1) * width] = mixed
    return found


def cache_model(arrays: Arrays) -> np.ndarray:
    rows, cache = arrays["rows"], arrays["cache"].copy()
    if rows.shape[1] != cache.shape[1]:
        rows = rows.transpose(1, 0, 2)
    cache[PAST : PAST + VALID] = rows[:VALID]
    return cache


def a_linear(profile: DeviceProfile, **changed: object) -> Kernel:
    shape = LinearShape(rows=48, inputs=160, outputs=208, **changed)  # type: ignore[arg-type]
    return linear(shape, profile, name="k", composite="linear")


def a_long_linear(profile: DeviceProfile, **changed: object) -> Kernel:
    shape = LinearShape(rows=16, inputs=4096, outputs=64, has_bias=True, **changed)  # type: ignore[arg-type]
    return linear(shape, profile, name="k", composite="linear")


def an_attention(profile: DeviceProfile, **changed: object) -> Kernel:
    sizes = {"heads": 6, "kv_heads": 2, "tokens": 9, "width": 16, "context": 40}
    asked = {**sizes, "scale": 0.25, "window": 0, **changed}
    return attention(AttentionShape(**asked), profile, name="k")  # type: ignore[arg-type]


def a_rotary(profile: DeviceProfile, *, is_by_token: bool) -> Kernel:
    return rotary(3, 20, width=16, is_by_token=is_by_token, profile=profile, name="k")


def a_cache_update(profile: DeviceProfile, *, is_by_head: bool) -> Kernel:
    return cache_update(
        9, 3, width=16, context=40, is_by_head=is_by_head, profile=profile, name="k"
    )


def rows_of(profile: DeviceProfile) -> Kernel:
    return gather(30, 11, width=24, dtype="f16", composite="embedding", profile=profile, name="k")


def a_binary(profile: DeviceProfile, op: str) -> Kernel:
    return binary(20, 48, op=op, composite=op, profile=profile, name="k")


CASES: dict[str, tuple[Callable[[DeviceProfile], Kernel], Callable[[Arrays], np.ndarray], int]] = {
    "linear": (a_linear, linear_model, 60_000),
    "linear-bias": (lambda p: a_linear(p, has_bias=True), linear_model, 60_000),
    "linear-int8": (lambda p: a_linear(p, weight_dtype="i8", has_bias=True), linear_model, 60_000),
    "linear-in-parts": (a_long_linear, linear_model, 80_000),
    "linear-groups": (
        lambda p: a_linear(p, weight_dtype="i8", group=32, has_bias=True),
        linear_model,
        60_000,
    ),
    "linear-groups-in-parts": (
        lambda p: a_long_linear(p, weight_dtype="i8", group=64),
        linear_model,
        80_000,
    ),
    "head": (lambda p: a_linear(p, result="f32"), linear_model, 60_000),
    "rms_norm": (
        lambda p: rms_norm(20, 48, epsilon=1e-6, profile=p, name="k"),
        norm_model,
        6000,
    ),
    "silu_mul": (lambda p: a_binary(p, "silu_mul"), silu_model, 8000),
    "add": (lambda p: a_binary(p, "add"), lambda a: wide(a["a"]) + wide(a["b"]), 8000),
    "rotary": (lambda p: a_rotary(p, is_by_token=False), rotary_model, 4000),
    "rotary-by-token": (lambda p: a_rotary(p, is_by_token=True), rotary_model, 4000),
    "angles": (lambda p: angles(20, 8, op="cosine", profile=p, name="k"), angle_model, 800),
    "attention": (an_attention, attention_model, 12_000),
    "attention-window": (
        lambda p: an_attention(p, window=4),
        lambda a: attention_model(a, window=4),
        12_000,
    ),
    "attention-int8": (lambda p: an_attention(p, is_int8=True), attention_model, 12_000),
    "rounded-tokens": (
        lambda p: rounded_tokens(20, 48, profile=p, name="k"),
        tokens_model,
        8000,
    ),
    "cache": (lambda p: a_cache_update(p, is_by_head=False), cache_model, 600),
    "cache-by-head": (lambda p: a_cache_update(p, is_by_head=True), cache_model, 200),
    "embedding": (rows_of, lambda a: a["table"][a["indices"]], 600),
    "embedding-int8": (
        lambda p: scaled_rows(30, 11, width=24, groups=1, profile=p, name="k"),
        table_model,
        1200,
    ),
    "embedding-groups": (
        lambda p: scaled_rows(30, 11, width=24, groups=3, profile=p, name="k"),
        table_model,
        1200,
    ),
    "part": (
        lambda p: columns(9, 40, first=8, count=24, dtype="f16", profile=p, name="k"),
        lambda a: a["x"][:, 8:32],
        300,
    ),
    "swapped": (
        lambda p: swapped(9, 4, width=8, dtype="f16", profile=p, name="k"),
        lambda a: a["x"].transpose(1, 0, 2),
        100,
    ),
}


def arrays_for(kernel: Kernel) -> dict[str, np.ndarray]:
    found = random_arrays(kernel)
    for name in found:
        if name.endswith("scale"):
            found[name] = np.abs(found[name]) / 100
    for tensor in kernel.inputs:
        values = {"past_length": [PAST], "valid_length": [VALID]}.get(tensor.name)
        if tensor.dtype == "i64":
            entries = tensor.shape[0] if values is None else 1
            random = np.random.default_rng(1).integers(0, 30, entries)
            found[tensor.name] = np.array(random if values is None else values, np.int64)
    return found


def is_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Of equal values up to one rounding to float16, or of the same sum in float32."""
    scale = np.abs(wanted).max()
    if found.dtype == np.float16:
        np.testing.assert_allclose(found, wanted, rtol=ULP, atol=ULP * scale / 64)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=2e-7 * scale)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chip", ["large", "small"])
def test_a_kernel_is_its_composite(case: str, chip: str) -> None:
    make, model, small = CASES[case]
    profile = PROFILE if chip == "large" else small_chip(small)
    kernel = make(profile)
    arrays = arrays_for(kernel)
    states = ("cache",) if "cache" in arrays else ()
    wanted = model(arrays)
    found = run_kernel(kernel, arrays, profile=profile, states=states)
    rows = VALID if kernel.composite == "attention" else len(found)
    is_close(found.reshape(wanted.shape)[:rows], wanted[:rows])


def test_small_chips_take_several_tiles() -> None:
    """Else the same would be run twice above."""
    for case, (make, _, small) in CASES.items():
        assert make(small_chip(small)) != make(PROFILE), case


def test_inputs_that_do_not_fit_are_summed_in_parts() -> None:
    kernel = a_long_linear(small_chip(80_000))
    assert "for k in" in tile_text(program_of(kernel, onchip_bytes=80_000))


LOADS = [
    (case, index)
    for case, (make, _, small) in CASES.items()
    for index in range(
        tile_text(program_of(make(small_chip(small)), onchip_bytes=small)).count(" load ")
    )
]


@pytest.mark.parametrize(("case", "index"), LOADS)
def test_no_load_can_be_left_out(case: str, index: int) -> None:
    make, _, small = CASES[case]
    kernel = make(small_chip(small))
    arrays = arrays_for(kernel)
    states = ("cache",) if "cache" in arrays else ()
    text = tile_text(program_of(kernel, onchip_bytes=small, states=states))
    whole = run_text(text, {name: array.copy() for name, array in arrays.items()})
    start, end = list(re.finditer(r" +load .*\n", text))[index].span()
    part = EmulatedPartition(text[:start] + text[end:])
    given = [arrays[one.tensor.name] for one in part.program.arguments]
    with contextlib.suppress(TargetError):
        (found,) = part.call(given)
        assert not np.array_equal(found, whole)


def test_a_value_beyond_float16_becomes_infinite() -> None:
    kernel = a_binary(PROFILE, "add")
    arrays = {name: np.full((20, 48), 60000, np.float16) for name in ("a", "b")}
    assert np.isposinf(run_kernel(kernel, {**arrays, "y": arrays["a"]})).all()


@pytest.mark.parametrize("is_by_head", [False, True])
@pytest.mark.parametrize("chip", [PROFILE, small_chip(600)], ids=["large", "small"])
def test_a_cache_of_codes_holds_the_rounded_rows_and_their_scales(
    chip: DeviceProfile, is_by_head: bool
) -> None:
    kernel = cache_update(
        9, 3, width=16, context=40, is_by_head=is_by_head, is_int8=True, profile=chip, name="k"
    )
    arrays = arrays_for(kernel)
    arrays["rows"].flat[16:32] = 0
    rows = arrays["rows"].transpose(1, 0, 2) if is_by_head else arrays["rows"]
    before = {name: arrays[name].copy() for name in ("cache", "scales")}
    assert kernel.onchip_bytes <= chip.tile_bytes
    names = ("cache", "scales")
    text = tile_text(program_of(kernel, onchip_bytes=chip.onchip_bytes, states=names))
    part = EmulatedPartition(text)
    part.call([arrays[one.tensor.name] for one in part.program.arguments])
    written = slice(PAST, PAST + VALID)
    for name, wanted in zip(names, rounded(rows[:VALID]), strict=True):
        np.testing.assert_array_equal(arrays[name][written], wanted)
        for rest in (slice(0, PAST), slice(PAST + VALID, None)):
            np.testing.assert_array_equal(arrays[name][rest], before[name][rest])
    assert (arrays["scales"] == 1).any()
