"""What a comparison reads: random tokens, texts and conversations, as far as they fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from built_bundles import TINY, BuiltBundles

from compiler.config import BuildConfig, load_config
from compiler.contracts.errors import RunError
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.workflows.comparing.inputs import (
    DEFAULT_PROMPTS,
    Conversation,
    InputOptions,
    digest_of,
    layers_of,
    prepared_inputs,
    read_prompts,
    text_tokens,
    vocabulary_of,
)
from compiler.workflows.frontend import locate

# Of the tiny model's chat template: user, the word, end, assistant.
CHAT: Conversation = ({"role": "user", "content": "t5"},)
USER, ASSISTANT, END = 125, 126, 127


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def config(built_bundles: BuiltBundles) -> BuildConfig:
    return built_bundles.config()


@pytest.fixture(scope="module")
def checkpoint(config: BuildConfig) -> CheckpointRef:
    return locate(config, progress=Progress())


def prepared(
    config: BuildConfig, checkpoint: CheckpointRef, options: InputOptions
) -> tuple[list[tuple[int, ...]], list[str]]:
    notes = Notes()
    return prepared_inputs(config, checkpoint, options, notes), notes.said


def shaped(built_bundles: BuiltBundles, folder: Path, window: int, context: int | None):
    yaml = built_bundles.variant(folder, window=window, context=context)
    return load_config(yaml)


@pytest.mark.parametrize(
    ("window", "context", "tokens", "lengths"),
    [
        (32, 48, 4, [1, 12, 32, 41]),
        (32, 48, 16, [1, 12, 32]),
        (32, 48, 40, [1, 8]),
        (32, 48, 47, [1]),
        (32, None, 4, [1, 12, 28]),
        (16, 48, 4, [1, 6, 16, 20]),
    ],
)
def test_random_prompts_by_windows_and_room(
    built_bundles: BuiltBundles,
    checkpoint: CheckpointRef,
    tmp_path: Path,
    window: int,
    context: int | None,
    tokens: int,
    lengths: list[int],
) -> None:
    config = shaped(built_bundles, tmp_path, window, context)
    found, _ = prepared(config, checkpoint, InputOptions(prompts=(), tokens=tokens))
    assert [len(one) for one in found] == lengths
    room = (context or window) - tokens
    assert all(0 <= token < 128 for one in found for token in one)
    assert max(lengths) <= room


def test_random_prompts_are_repeatable_by_their_seed(
    config: BuildConfig, checkpoint: CheckpointRef
) -> None:
    options = InputOptions(prompts=(), seed=3)
    first, _ = prepared(config, checkpoint, options)
    again, _ = prepared(config, checkpoint, options)
    other, _ = prepared(config, checkpoint, replace(options, seed=4))
    assert first == again
    assert first != other
    assert digest_of(first) == digest_of(again) != digest_of(other)
    assert digest_of([(1, 2)]) != digest_of([(1,), (2,)])
    assert all(type(token) is int for one in first for token in one)


def test_texts_and_conversations_follow(config: BuildConfig, checkpoint: CheckpointRef) -> None:
    options = InputOptions(prompts=("t1 t2 t3", CHAT))
    found, said = prepared(config, checkpoint, options)
    assert found[-2:] == [(1, 2, 3), (USER, 5, END, ASSISTANT)]
    assert len(found) == 5
    assert said == []
    alone, _ = prepared(config, checkpoint, replace(options, has_random=False))
    assert alone == found[-2:]


def test_what_does_not_fit_is_said(config: BuildConfig, checkpoint: CheckpointRef) -> None:
    long = "t1 " * 47
    talk: Conversation = ({"role": "user", "content": long},)
    options = InputOptions(prompts=(long, " ", talk, "t1"), tokens=2, has_random=False)
    found, said = prepared(config, checkpoint, options)
    assert found == [(1,)]
    assert said == [
        f"left out: {long[:40]!r} has 47 tokens, 46 fit",
        "left out: ' ' has 0 tokens, 46 fit",
        f"left out: {long[:40]!r} has 50 tokens, 46 fit",
    ]


@pytest.mark.parametrize("tokens", [48, 49, 1000])
def test_nothing_fits(config: BuildConfig, checkpoint: CheckpointRef, tokens: int) -> None:
    with pytest.raises(RunError) as caught:
        prepared(config, checkpoint, InputOptions(prompts=("t1",), tokens=tokens))
    assert caught.value.message == (
        f"nothing to compare: {tokens} tokens leave 0 for a prompt in a context of 48"
    )
    assert caught.value.hint == "ask for fewer tokens, or build with a longer context"


def test_a_checkpoint_without_a_tokenizer(
    config: BuildConfig, checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    bare = replace(checkpoint, path=tmp_path)
    found, said = prepared(config, bare, InputOptions())
    assert [len(one) for one in found] == [1, 12, 32]
    assert said == ["the checkpoint has no tokenizer: no text is compared"]
    with pytest.raises(RunError, match="nothing to compare"):
        prepared(config, bare, InputOptions(has_random=False))
    with pytest.raises(RunError, match=r"there is no tokenizer.json") as caught:
        text_tokens(bare, "t1 t2")
    assert caught.value.where == str(tmp_path)


def test_a_conversation_without_a_template(
    config: BuildConfig, checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    source = checkpoint.path / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    bare = replace(checkpoint, path=tmp_path)
    with pytest.raises(RunError, match="there is no chat template"):
        prepared(config, bare, InputOptions(prompts=(CHAT,)))


def test_tokens_of_a_text(checkpoint: CheckpointRef) -> None:
    assert text_tokens(checkpoint, None) is None
    assert text_tokens(checkpoint, "t1 t2\nt3") == (1, 2, 3)
    for text, count in (("", 0), ("t1", 1)):
        with pytest.raises(RunError) as caught:
            text_tokens(checkpoint, text)
        assert caught.value.message == f"the perplexity of {count} tokens means nothing"
        assert (caught.value.where, caught.value.hint) == ("--text", "give a longer text")


def test_sizes_of_the_model(checkpoint: CheckpointRef) -> None:
    assert (vocabulary_of(checkpoint), layers_of(checkpoint)) == (TINY.vocabulary, TINY.layers)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", b"one\n\n two \r\n \nthree", ("one", " two ", "three")),
        ("p.txt", "\ufeff中国的首都是\n".encode(), ("中国的首都是",)),
        ("p.txt", b'["one"]', ('["one"]',)),
        ("p.json", b'["one", "", "two\\nlines"]', ("one", "two\nlines")),
        ("p.json", b'\xef\xbb\xbf["one"]', ("one",)),
        ("p.json", json.dumps([*CHAT]).encode(), (CHAT,)),
        ("p.json", json.dumps([[*CHAT], "one", [*CHAT, *CHAT]]).encode(), (CHAT, "one", CHAT * 2)),
        (
            "p.json",
            b'[[{"role": "user", "content": "t5", "name": "ignored"}]]',
            (CHAT,),
        ),
    ],
)
def test_prompts_of_a_file(
    tmp_path: Path, name: str, content: bytes, expected: tuple[object, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompt"),
        ("p.txt", b" \n\t\n", "holds no prompt"),
        ("p.txt", b"\xff", "is not UTF-8: 'utf-8' codec"),
        ("p.json", b"[]", "holds no prompt"),
        ("p.json", b'[" "]', "holds no prompt"),
        ("p.json", b"", "is not JSON: Expecting value"),
        ("p.json", b"[", "is not JSON: Expecting value"),
        ("p.json", b"[" * 100_000, "is not JSON: maximum recursion depth"),
        ("p.json", b"{}", "is not a list of texts or of conversations"),
        ("p.json", b'"one"', "is not a list of texts or of conversations"),
        ("p.json", b"null", "is not a list of texts or of conversations"),
        ("p.json", b'["one", 2]', "is not a list of texts or of conversations"),
        ("p.json", b'["one", null]', "is not a list of texts or of conversations"),
        ("p.json", b"[[]]", "is not a list of texts or of conversations"),
        ("p.json", b"[{}]", "is not a list of texts or of conversations"),
        ("p.json", b'[["one"]]', "is not a list of texts or of conversations"),
        ("p.json", b'[{"role": "user"}]', "is not a list of texts or of conversations"),
        ("p.json", b'[{"role": "user", "content": 5}]', "is not a list of texts or of conversat"),
        ("p.json", b'[{"role": "user", "content": "x"}, "y"]', "is not a list of texts or of conv"),
    ],
)
def test_files_that_hold_no_prompts(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_prompts(path)
    assert caught.value.message.startswith(message)
    assert (caught.value.where, caught.value.code) == (str(path), "usage")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(RunError, match=f"cannot be read: {reason}") as caught:
            read_prompts(path)
        assert caught.value.where == str(path)


def test_the_default_prompts_are_texts_in_two_scripts() -> None:
    assert InputOptions().prompts == DEFAULT_PROMPTS
    assert any(not prompt.isascii() for prompt in DEFAULT_PROMPTS)
