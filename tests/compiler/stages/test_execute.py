"""Sessions over a stand-in model whose logits depend on every token before, so that a cache that
was rewound wrongly answers differently.
"""

import json
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from compiler.contracts.errors import RunError
from compiler.contracts.program import Phase
from compiler.contracts.runner import WindowedRunner
from compiler.stages.execute import GenerateOptions, Generation, Session
from compiler.text import ChatTemplate, Message, Text

EOS = 256
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}</s>"
    "{% endif %}{% endfor %}[assistant]"
)
GREEDY = GenerateOptions(max_tokens=12)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


HELLO = [user("hello")]


class HistoryRunner(WindowedRunner):
    """The cache holds the ids; the logits are drawn from all of them."""

    def __init__(self, *, window: int = 8, context: int = 96, vocabulary: int = EOS + 1) -> None:
        self.window = window
        self.context = context
        self.vocabulary = vocabulary
        self.cache = np.full(context, -1)
        self.calls: list[tuple[Phase, int, int]] = []
        self.interrupt_at: int | None = None
        self.is_closed = False

    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        assert past + valid <= self.context
        self.cache[past : past + valid] = tokens[0, :valid]
        if self.interrupt_at is not None and past >= self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt
        self.calls.append((phase, past, valid))
        return self.logits(self.cache[: past + valid])

    def logits(self, history: np.ndarray) -> np.ndarray:
        seed = zlib.crc32(history.tobytes())
        logits = np.random.default_rng(seed).standard_normal(self.vocabulary).astype(np.float32)
        logits[EOS:] = -np.inf
        return logits

    def close(self) -> None:
        self.is_closed = True


class ScriptedRunner(HistoryRunner):
    """Says the given tokens, whatever the prompt of `prompt` tokens holds."""

    def __init__(self, script: Sequence[int], *, prompt: int = 1, context: int = 96) -> None:
        super().__init__(context=context, vocabulary=EOS + 4)
        self.script = list(script)
        self.prompt = prompt

    def logits(self, history: np.ndarray) -> np.ndarray:
        logits = np.zeros(self.vocabulary, np.float32)
        logits[self.script[max(len(history) - self.prompt, 0)]] = 1
        return logits


def byte_tokenizer() -> Tokenizer:
    """One token a byte; 256 is the end, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return tokenizer


def byte_text(*eos: int) -> Text:
    template = ChatTemplate(CHAT, special_tokens={}, where="chat_template.jinja")
    return Text(byte_tokenizer(), eos=eos, template=template)


TEXT = byte_text(EOS)


def expected_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """What the model says, computed without a session."""
    runner = HistoryRunner()
    history = list(prompt)
    for _ in range(count):
        history.append(int(np.argmax(runner.logits(np.array(history)))))
    return history[len(prompt) :]


def last(session: Session) -> Generation:
    assert session.last is not None
    return session.last


def script(text: str) -> list[int]:
    return TEXT.encode(text)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 21])
def test_greedy_follows_the_model_whatever_the_prompts_length(length: int) -> None:
    prompt = list(range(40, 40 + length))
    generation = Session(HistoryRunner(), TEXT).complete(prompt, GREEDY)
    assert list(generation.tokens) == expected_tokens(prompt, 12)
    assert generation.prompt_tokens == length
    assert generation.finish_reason == "length"
    assert generation.text == TEXT.decode(generation.tokens)
    assert generation.prefill_seconds > 0
    assert generation.decode_tokens_per_second > 0
    assert generation.logits is None


def test_the_stream_is_the_result_piece_by_piece() -> None:
    session = Session(HistoryRunner(), TEXT)
    tokens = list(session.generate("hello", GREEDY))
    assert [token.id for token in tokens] == expected_tokens(TEXT.encode("hello"), 12)
    assert "".join(token.text for token in tokens) == last(session).text


def test_the_result_is_there_with_the_last_token() -> None:
    session = Session(HistoryRunner(), TEXT)
    for n, _ in enumerate(session.generate([1], GREEDY)):
        assert (session.last is None) == (n < 11)


def test_characters_are_whole_in_the_stream() -> None:
    tokens = script("a👩b")
    session = Session(ScriptedRunner(tokens), TEXT)
    pieces = [token.text for token in session.generate([1], replace(GREEDY, max_tokens=6))]
    assert pieces == ["a", "", "", "", "👩", "b"]


def test_what_is_held_back_comes_with_the_last_token() -> None:
    session = Session(ScriptedRunner(script("a👩")), TEXT)
    options = replace(GREEDY, max_tokens=3, stop=("\ufffd!",))
    assert [token.text for token in session.generate([1], options)] == ["a", "", "\ufffd"]


def test_an_eos_is_the_last_token_and_not_in_the_text() -> None:
    session = Session(ScriptedRunner([*script("ok"), EOS, *script("never")]), TEXT)
    generation = session.complete([1], GREEDY)
    assert generation.tokens == (*script("ok"), EOS)
    assert generation.text == "ok"
    assert generation.finish_reason == "eos"


def test_every_eos_ends_and_its_text_is_left_out_though_it_is_no_special_token() -> None:
    text = byte_text(EOS, *script("!"))
    generation = Session(ScriptedRunner(script("hi!no")), text).complete([1], GREEDY)
    assert (generation.text, generation.finish_reason) == ("hi", "eos")


def test_a_stop_text_ends_and_is_cut_off() -> None:
    session = Session(ScriptedRunner(script("one two three")), TEXT)
    options = replace(GREEDY, stop=(" twice", " tw"))
    pieces = [token.text for token in session.generate([1], options)]
    assert pieces == ["o", "n", "e", "", "", ""]
    generation = last(session)
    assert (generation.text, generation.finish_reason) == ("one", "stop")
    assert generation.tokens == tuple(script("one tw"))


def test_a_stop_text_completed_by_the_last_token_is_a_stop() -> None:
    session = Session(ScriptedRunner(script("abc")), TEXT)
    generation = session.complete([1], replace(GREEDY, max_tokens=3, stop=("c",)))
    assert (generation.text, generation.finish_reason) == ("ab", "stop")


def test_a_stop_text_completed_by_what_was_held_back_is_a_stop() -> None:
    session = Session(ScriptedRunner(script("a👩")), TEXT)
    generation = session.complete([1], replace(GREEDY, max_tokens=3, stop=("\ufffd",)))
    assert (generation.text, generation.finish_reason) == ("a", "stop")


@pytest.mark.parametrize(("prompt", "count"), [(96, 1), (95, 2), (90, 7)])
def test_a_full_context_ends_with_length(prompt: int, count: int) -> None:
    tokens = [n % 200 for n in range(prompt)]
    runner = HistoryRunner()
    generation = Session(runner, TEXT).complete(tokens, GenerateOptions(max_tokens=50))
    assert list(generation.tokens) == expected_tokens(tokens, count)
    assert generation.finish_reason == "length"
    assert runner.length == 96


def test_a_prompt_over_the_context_is_refused_before_anything_runs() -> None:
    runner = HistoryRunner()
    with pytest.raises(RunError, match="the prompt has 97 tokens, the context holds 96") as caught:
        Session(runner, TEXT).generate([1] * 97, GREEDY)
    assert caught.value.code == "context-full"
    assert runner.calls == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "no tokens were given"),
        ("", "no tokens were given"),
        ([1, 257], "token id 257 is outside the vocabulary of 257"),
        ([-1], "token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused_at_once(prompt: str | list[int], said: str) -> None:
    runner = HistoryRunner()
    with pytest.raises(RunError, match=said):
        Session(runner, TEXT).generate(prompt, GREEDY)
    assert runner.calls == []


def test_a_refused_prompt_leaves_the_session_usable() -> None:
    session = Session(HistoryRunner(), TEXT)
    session.complete([5], GREEDY)
    with pytest.raises(RunError):
        session.generate([300], GREEDY)
    assert list(session.complete([6], GREEDY).tokens) == expected_tokens([6], 12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, expected at least 1"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"temperature": -0.1}, "temperature is -0.1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0, expected more than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("a", "")}, "a stop text is empty"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(RunError, match=said):
        replace(GREEDY, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 3])
def test_logits_that_are_no_numbers_are_an_error_naming_the_step(value: float, step: int) -> None:
    class Broken(HistoryRunner):
        def logits(self, history: np.ndarray) -> np.ndarray:
            logits = super().logits(history)
            logits[17] = value if len(history) == 2 + step else 0
            return logits

    session = Session(Broken(), TEXT)
    seen: list[int] = []
    with pytest.raises(RunError, match=f"logits of step {step} hold {value}".replace("nan", "NaN")):
        seen.extend(token.id for token in session.generate([1, 2], replace(GREEDY, temperature=1)))
    assert len(seen) == step
    assert session.last is None


def test_minus_infinity_is_a_token_that_is_never_chosen_and_all_of_them_are_an_error() -> None:
    class Masked(HistoryRunner):
        def logits(self, history: np.ndarray) -> np.ndarray:
            logits = np.full(self.vocabulary, -np.inf, np.float32)
            logits[[3, 5]] = 0 if len(history) < 20 else -np.inf
            return logits

    options = GenerateOptions(max_tokens=10, temperature=1.0)
    tokens = Session(Masked(), TEXT).complete([1], options).tokens
    assert set(tokens) == {3, 5}
    with pytest.raises(RunError, match="logits of step 0 hold -inf"):
        Session(Masked(), TEXT).complete([1] * 20, options)


def test_sampling_is_reproducible_and_does_not_carry_over() -> None:
    options = GenerateOptions(max_tokens=20, temperature=1.0, top_p=0.9, seed=4)
    session = Session(HistoryRunner(), TEXT)
    first = session.complete([1], options).tokens
    assert session.complete([1], options).tokens == first
    assert session.complete([1], replace(options, seed=5)).tokens != first
    assert list(first) != expected_tokens([1], 20)


def test_kept_logits_are_those_that_each_token_was_chosen_from() -> None:
    runner = ScriptedRunner([*script("ok"), EOS])
    generation = Session(runner, TEXT).complete([1], replace(GREEDY, keep_logits=True))
    assert generation.logits is not None
    assert generation.logits.shape == (3, EOS + 4)
    assert generation.logits.dtype == np.float32
    assert tuple(generation.logits.argmax(axis=1)) == generation.tokens


def test_kept_logits_are_copies() -> None:
    class Reusing(HistoryRunner):
        shared = np.zeros(EOS + 1, np.float32)

        def logits(self, history: np.ndarray) -> np.ndarray:
            self.shared[:] = super().logits(history)
            return self.shared

    generation = Session(Reusing(), TEXT).complete([1], replace(GREEDY, keep_logits=True))
    assert generation.logits is not None
    assert tuple(generation.logits.argmax(axis=1)) == generation.tokens


def test_a_prompt_starts_from_an_empty_cache() -> None:
    session = Session(HistoryRunner(), TEXT)
    session.complete([1, 2, 3], GREEDY)
    assert list(session.complete([1, 2, 4], GREEDY).tokens) == expected_tokens([1, 2, 4], 12)


def answer(session: Session, messages: list[Message]) -> str:
    list(session.chat(messages, GREEDY))
    return last(session).text


def test_a_conversation_reads_only_what_is_new() -> None:
    runner = ScriptedRunner([*script("hi"), EOS], prompt=len(TEXT.chat(HELLO)))
    session = Session(runner, TEXT)
    messages = [*HELLO]
    assert answer(session, messages) == "hi"
    in_cache = runner.length
    assert in_cache == len(TEXT.chat(messages)) + 2  # the eos was never fed back
    messages += [assistant("hi"), user("more")]
    whole = TEXT.chat(messages)
    runner.calls.clear()
    runner.script, runner.prompt = [*script("yes"), EOS], len(whole)
    assert answer(session, messages) == "yes"
    assert runner.calls[0][1] == in_cache
    assert last(session).prompt_tokens == len(whole)


def test_turns_on_one_cache_answer_as_each_from_an_empty_one() -> None:
    session = Session(HistoryRunner(context=400), TEXT)
    messages = [*HELLO]
    for turn in ("and", "then", "why"):
        list(session.chat(messages, GREEDY))
        assert list(last(session).tokens) == expected_tokens(TEXT.chat(messages), 12)
        messages += [assistant(last(session).text), user(turn)]
    edited = [user("help"), *messages[1:]]
    list(session.chat(edited, GREEDY))
    assert list(last(session).tokens) == expected_tokens(TEXT.chat(edited), 12)


def test_the_same_conversation_again_reads_one_token_again() -> None:
    runner = HistoryRunner()
    session = Session(runner, TEXT)
    list(session.chat(HELLO, GREEDY))
    first = last(session)
    runner.calls.clear()
    list(session.chat(HELLO, GREEDY))
    assert runner.calls[0] == ("decode", first.prompt_tokens - 1, 1)
    assert last(session).tokens == first.tokens


def test_a_conversation_after_a_prompt_shares_what_is_equal() -> None:
    runner = HistoryRunner()
    session = Session(runner, TEXT)
    tokens = TEXT.chat(HELLO)
    session.complete([*tokens[:4], 99], replace(GREEDY, max_tokens=1))
    list(session.chat(HELLO, GREEDY))
    assert list(last(session).tokens) == expected_tokens(tokens, 12)
    assert (runner.calls[1][1], runner.length) == (4, len(tokens) + 11)


@pytest.mark.parametrize("interrupt_at", [0, 8, 16, 22, 25])
def test_an_interrupt_leaves_the_session_usable(interrupt_at: int) -> None:
    runner = HistoryRunner()
    session = Session(runner, TEXT)
    prompt = TEXT.chat(HELLO)
    assert len(prompt) == 22
    runner.interrupt_at = interrupt_at
    with pytest.raises(KeyboardInterrupt):
        list(session.chat(HELLO, GREEDY))
    assert session.last is None
    longer = [user("hello there")]
    list(session.chat(longer, GREEDY))
    assert list(last(session).tokens) == expected_tokens(TEXT.chat(longer), 12)
    list(session.chat(HELLO, GREEDY))
    assert list(last(session).tokens) == expected_tokens(prompt, 12)


def test_a_stream_that_is_left_early_leaves_the_session_usable() -> None:
    session = Session(HistoryRunner(), TEXT)
    abandoned = session.generate([1, 2], GREEDY)
    next(abandoned)
    next(abandoned)
    assert list(session.complete([1, 2], GREEDY).tokens) == expected_tokens([1, 2], 12)
    with pytest.raises(RunError, match="another generation has started on this session"):
        next(abandoned)


def test_without_a_tokenizer_ids_run_and_text_is_refused() -> None:
    session = Session(HistoryRunner(), Text(None))
    generation = session.complete([1, 2], GREEDY)
    assert list(generation.tokens) == expected_tokens([1, 2], 12)
    assert generation.text == ""
    with pytest.raises(RunError, match=r"no tokenizer\.json") as caught:
        session.generate("hello", GREEDY)
    assert caught.value.hint == "give token ids (--token-ids 1,2,3)"
    with pytest.raises(RunError, match="stop texts need a tokenizer"):
        session.generate([1], replace(GREEDY, stop=("x",)))


def test_a_session_closes_its_runner() -> None:
    runner = HistoryRunner()
    with Session(runner, TEXT) as session:
        session.complete([1], GREEDY)
    assert runner.is_closed


def test_the_process_stays_lean(tmp_path: Path) -> None:
    source = tmp_path / "lean.py"
    source.write_text(LEAN)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == [7, 7, 7]
    heavy = {"torch", "transformers", "tvm", "onnx", "onnxruntime", "onnx_graphsurgeon"}
    assert sorted({*heavy, "huggingface_hub", "safetensors", "rich"} & set(found["modules"])) == []
    assert found["peak_kib"] < 60_000


LEAN = """
import json, pathlib, sys
import numpy as np
from compiler.contracts.runner import Runner
from compiler.stages.execute import GenerateOptions, Session
from compiler.text import Text
import compiler.workflows.run

class Seven(Runner):
    vocabulary, context = 300, 64
    def extend(self, tokens):
        self.check_tokens(tokens)
        self.length += len(tokens)
        return np.eye(300, dtype=np.float32)[7]

session = Session(Seven(), Text.open(pathlib.Path(sys.argv[1])))
list(session.chat([{"role": "user", "content": "hello"}], GenerateOptions(max_tokens=3)))
print(json.dumps({
    "tokens": session.last.tokens,
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "peak_kib": int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]),
}))
"""
