import platform

import pytest

from compiler.contracts.errors import ConfigError
from targets.llvm import features as module
from targets.llvm.features import CpuFeatures, detect, from_names, llvm_target, missing


@pytest.mark.parametrize(
    ("names", "lanes", "registers"),
    [((), 4, 16), (("avx2", "fma"), 8, 16), (("avx2", "avx512f", "fma"), 16, 32)],
)
def test_vectors_follow_from_flags(names, lanes, registers):
    features = from_names(names)
    assert (features.lanes, features.vector_registers) == (lanes, registers)


def test_names_are_sorted_unique_and_of_either_spelling():
    assert from_names(["fma", "avx512vnni", "avx2", "fma"]) == CpuFeatures(
        "x86_64", ("avx2", "avx512_vnni", "fma")
    )


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown CPU feature 'avx521f'") as caught:
        from_names(["avx2", "avx521f"])
    assert caught.value.hint == "did you mean 'avx512f'?"
    with pytest.raises(ConfigError) as caught:
        from_names(["zzz"])
    assert caught.value.hint is not None
    assert "avx2" in caught.value.hint


def test_detect_reads_flags_not_the_model_name(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: avx512f special\nflags\t\t: fpu sse2 avx2 fma amx_tile\n")
    monkeypatch.setattr(module, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert detect() == CpuFeatures("x86_64", ("amx_tile", "avx2", "fma"))


def test_detect_elsewhere_is_plain(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    features = detect()
    assert features == CpuFeatures("aarch64", ())
    assert features.lanes == 4
    assert llvm_target(features, threads=3) == {
        "kind": "llvm",
        "mtriple": "aarch64-unknown-linux-gnu",
        "num-cores": 3,
    }


def test_missing_names_what_is_lacking():
    low, high = from_names(["avx2"]), from_names(["avx2", "avx512f", "avx512_bf16"])
    assert missing(high, low) == ("avx512_bf16", "avx512f")
    assert missing(low, high) == ()
    assert missing(low, CpuFeatures("aarch64", ())) == ("x86_64", "avx2")


def test_target_is_a_function_of_its_arguments():
    assert llvm_target(from_names(["fma", "avx512_vnni", "amx_int8"]), threads=2) == {
        "kind": "llvm",
        "mtriple": "x86_64-unknown-linux-gnu",
        "mcpu": "x86-64",
        "mattr": ["+amx-int8", "+avx512vnni", "+fma"],
        "num-cores": 2,
    }


def test_tvm_takes_every_name():
    tvm = pytest.importorskip("tvm")
    target = tvm.target.Target(llvm_target(from_names(list(module._LLVM_NAMES)), threads=2))
    func = tvm.tirx.PrimFunc([], tvm.tirx.Evaluate(0)).with_attr("global_symbol", "empty")
    assert tvm.compile(tvm.IRModule({"empty": func}), target=target)["empty"]() is None
