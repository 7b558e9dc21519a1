"""`passes` on the command line: tables, JSON, files, exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler import registry
from compiler.cli import main

BUGGY = Path(__file__).parents[1] / "buggy_passes.py"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of `passes ...` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "buggy.py").write_text(BUGGY.read_text(encoding="utf-8"), encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["passes", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def test_list_is_a_table(run):
    code, out, err = run("list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["pass", "phases", "options", "contract", "owner", "does"]
    assert [line.split()[0] for line in lines[1:]] == list(registry.passes())
    (row,) = [line for line in lines if line.startswith("insert-strided-slice")]
    assert "  prefill  " in row
    assert "  position=last_valid  " in row


def test_list_is_json(run):
    code, out, _ = run("list", "--json")
    listed = json.loads(out)["passes"]
    assert code == 0
    assert [one["name"] for one in listed] == list(registry.passes())
    one = next(one for one in listed if one["name"] == "store-weights")
    assert one["options"] == [
        {"name": "dtype", "type": "float32 | bfloat16 | float16", "default": "float32"}
    ]


def test_explain_shows_before_and_after(run):
    code, out, err = run("explain", "fuse-silu-mul")
    assert (code, err) == (0, "")
    about, _, shown = out.partition("\nbefore\n")
    before, _, after = shown.partition("\nafter\n")
    assert about.startswith("fuse-silu-mul (passes.fuse_silu_mul)\n\nOne node for the gated")
    assert "stands after   fold-constants" in about
    assert before.count("Mul(") == 2
    assert "graphlower.FusedSiluMul(" in after
    assert "\ndeclined in generated blocks\n  " in after


def test_explain_takes_options(run):
    code, out, _ = run("explain", "insert-strided-slice", "--set", "position=last", "--json")
    one = json.loads(out)
    assert code == 0
    assert one["requires"] == []
    assert "Slice(" in one["example_after"]


def test_explain_needs_no_option_that_is_one_of_several_words(run):
    code, out, _ = run("explain", "cast-dtype", "--json")
    assert code == 0
    assert "Cast <to: int = 10>" in json.loads(out)["example_after"]
    code, _, err = run("test", "cast-dtype")
    assert code == 2
    assert "pass 'cast-dtype' needs the option 'dtype'" in err


def test_new_says_what_to_do_next(run):
    code, out, err = run("new", "square-norms", "--folder", "mine")
    assert (code, out) == (0, "mine/square_norms.py\nmine/test_square_norms.py\n")
    assert "python -m pytest mine/test_square_norms.py\n" in err
    assert "python -m compiler passes test mine/square_norms.py:SquareNorms\n" in err
    assert "passes: {add: [./square_norms.py:SquareNorms]}" in err
    code, out, err = run("new", "square-norms", "--folder", "mine")
    assert (code, out) == (2, "")
    assert err.startswith("error: mine/square_norms.py: exists already\n")


def test_a_sound_pass_exits_with_0(run):
    run("new", "square-norms")
    code, out, _ = run("test", "square_norms.py:SquareNorms", "--graphs", "6", "--quiet")
    assert code == 0
    said = re.fullmatch(
        r"square-norms rewrote (\d+) places on (\d) of 6 graphs, and nothing is wrong",
        out.splitlines()[0],
    )
    assert said is not None
    assert int(said[1]) > int(said[2]) > 1
    code, out, _ = run("test", "square_norms.py:SquareNorms", "--graphs", "6", "--json")
    tried = json.loads(out)
    assert (code, tried["passed"], tried["failure"]) == (0, True, None)
    assert [str(tried["rewrites"]), str(tried["rewrote"])] == [said[1], said[2]]


def test_a_failure_is_shown_saved_and_reproduced(run, tmp_path: Path):
    code, out, _ = run("test", "./buggy.py:RewritesForEver", "--quiet")
    saved = tmp_path / "add-identity.counterexample.txt"
    assert code == 1
    assert out.startswith("add-identity failed on graph 1 (")
    assert "the smallest such graph has 1 node\n  repeat: a second run rewrites " in out
    assert out.endswith(f"saved as {saved.name}\n")
    assert "= Softmax <axis: int = -1> (" in out
    head = saved.read_text(encoding="utf-8").splitlines()[:2]
    again = "python -m compiler passes test ./buggy.py:RewritesForEver --reproduce"
    assert head[1] == f"# again: {again} {saved.name}"

    code, out, _ = run("test", "./buggy.py:RewritesForEver", "--reproduce", saved.name)
    assert (code, out.splitlines()) == (1, [head[0].removeprefix("# ").replace("'", "")])
    code, out, _ = run("test", "./buggy.py:WritesOneEpsilon", "--reproduce", saved.name)
    assert (code, out) == (0, "share-epsilon has nothing wrong on that graph\n")
    code, out, _ = run("test", "./buggy.py:RewritesForEver", "--reproduce", saved.name, "--json")
    assert (code, json.loads(out)["finding"]["check"]) == (1, "repeat")


def test_a_failure_is_json(run):
    code, out, _ = run("test", "./buggy.py:RewritesForEver", "-o", "kept.txt", "--json", "--quiet")
    tried = json.loads(out)
    assert (code, tried["passed"]) == (1, False)
    assert tried["failure"]["counterexample"] == "kept.txt"
    assert (tried["failure"]["check"], tried["failure"]["nodes"]) == ("repeat", 1)
    assert Path("kept.txt").is_file()


def test_a_pass_that_matches_nothing_has_failed(run):
    Path("idle.py").write_text(
        "from dataclasses import dataclass\n"
        "from compiler.contracts.pass_base import Pass, PassReport\n\n"
        "@dataclass(frozen=True)\nclass Idle(Pass):\n"
        '    name = "do-nothing"\n'
        "    def run(self, program):\n        return PassReport()\n"
    )
    code, out, _ = run("test", "idle.py:Idle", "--graphs", "2", "--quiet")
    assert (code, out) == (1, "do-nothing matched nothing on 2 graphs: it was not tried\n")
    code, out, _ = run("test", "keep-qkv-bias", "--graphs", "2", "--quiet")
    assert (code, out.splitlines()[0]) == (
        0,
        "keep-qkv-bias rewrote 0 places on 0 of 2 graphs, and nothing is wrong",
    )


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["tst", "x"], "argument ACTION: invalid choice: 'tst' (choose", "did you mean test?"),
        (["list", "--jsn"], "unrecognized arguments: --jsn", "did you mean --json?"),
        (["test", "fold-mask", "--graps=3"], "unrecognized arguments: --graps=3", "did you mean"),
        (["test", "fold-msk"], "no pass is named 'fold-msk'", "did you mean 'fold-mask'?"),
        (["test", "./none.py:A"], "pass './none.py:A': there is no file './none.py'", "a relative"),
        (["test", "./buggy.py:A"], "pass './buggy.py:A': there is no class 'A'", "name a"),
        (["test", "fold-mask", "--graphs", "0"], "--graphs is 0", "1 or more"),
        (["test", "fold-mask", "--seed", "-1"], "--seed is -1", "0 or more"),
        (["test", "fold-mask", "--set", "x"], "'x' is not option=value", "write for example"),
        (["test", "fold-mask", "--set", "x=1"], "pass 'fold-mask' has no option 'x'", "it has no"),
        (
            ["explain", "store-weights", "--set", "dtype=float12"],
            "dtype: the text 'float12' is not one of float32, bfloat16, float16",
            "did you mean 'float32'?",
        ),
        (["test", "fold-mask", "--reproduce", "none.txt"], "cannot be read: No such file", "give"),
        (["new", "Square"], "'Square' is not the name of a pass", "write a verb and a noun"),
    ],
)
def test_wrong_arguments(run, arguments: list[str], message: str, hint: str):
    code, out, _ = run(*arguments, "--json")
    (error,) = json.loads(out)["errors"]
    assert code == 2
    assert error["message"].startswith(message)
    assert error["hint"].startswith(hint)
