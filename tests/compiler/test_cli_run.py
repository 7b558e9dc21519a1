"""`run` on the command line, over a real session with a stand-in model."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from compiler.cli import main
from compiler.contracts.runner import Runner
from compiler.stages.execute import Session
from compiler.text import ChatTemplate, Text

EOS = 256
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


class ScriptedRunner(Runner):
    """Goes on with `answer` where the history ends in a part of it; remembers what it was given."""

    vocabulary = EOS + 1
    context = 400

    def __init__(self, answer: str, *, pause: float = 0.0) -> None:
        self.answer = [*answer.encode(), EOS]
        self.pause = pause
        self.history: list[int] = []
        self.read: list[int] = []

    def extend(self, tokens):
        self.check_tokens(tokens)
        time.sleep(self.pause)
        self.history = [*self.history[: self.length], *tokens]
        self.length += len(tokens)
        self.read.append(len(tokens))
        logits = np.zeros(self.vocabulary, np.float32)
        ends = range(len(self.answer) - 1, -1, -1)
        said = next(n for n in ends if self.history[len(self.history) - n :] == self.answer[:n])
        logits[self.answer[said]] = 1.0
        return logits


def byte_text(*, has_tokenizer: bool = True) -> Text:
    """A token for each byte, and a chat template."""
    from tokenizers import pre_tokenizers as pre

    byte_order = [c for c, _ in sorted(_byte_characters().items(), key=lambda item: item[1])]
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(byte_order)}, merges=[]))
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = ChatTemplate(TEMPLATE, special_tokens={}, where="test")
    return Text(tokenizer if has_tokenizer else None, eos=[EOS], template=template)


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    found = {chr(byte): byte for byte in plain}
    found |= {chr(256 + n): byte for n, byte in enumerate(others)}
    assert set(found) == set(pre.alphabet())
    return found


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedRunner:
    """The model behind every bundle."""
    monkeypatch.chdir(tmp_path)
    scripted = ScriptedRunner("Paris, of course.")

    def open_session(bundle: Path, *, verify: bool, threads: int | None) -> Session:
        scripted.opened = (bundle, verify, threads)  # pyright: ignore[reportAttributeAccessIssue]
        return Session(scripted, byte_text())

    monkeypatch.setattr("compiler.workflows.run.open_session", open_session)
    return scripted


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def said(runner: ScriptedRunner, *, prompt: int) -> str:
    """The prompt that the model was given."""
    return bytes(runner.history[:prompt]).decode()


def test_a_prompt_is_continued_and_the_speed_goes_to_stderr(runner, capsys):
    assert main(["run", "b", "--prompt", "What?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Paris, of course.\n"
    line = r"5 tokens read in \d+\.\d\d s, 18 written at \d+\.\d tokens/s, ended by eos\n"
    assert re.fullmatch(line, captured.err)
    assert runner.opened == (Path("b"), False, None)
    assert said(runner, prompt=5) == "What?"


def test_options_reach_the_session(runner, capsys):
    options = ["--verify", "--threads", "2", "--max-tokens", "5", "--quiet"]
    assert main(["run", "b", "--prompt", "x", *options]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("Paris\n", "")
    assert runner.opened == (Path("b"), True, 2)


def test_run_prints_one_object(runner, capsys):
    assert main(["run", "b", "--prompt", "abc", "--stop", ", of", "--stop", "zzz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("prefill_seconds") > 0
    assert found.pop("decode_tokens_per_second") > 0
    assert found == {
        "prompt_tokens": 3,
        "tokens": list(b"Paris, of"),
        "text": "Paris",
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("data", "prompt"),
    [(b"two\nlines\n", "two\nlines"), ("你好".encode(), "你好"), (b"x\n\n", "x\n")],
)
def test_a_prompt_from_stdin_less_its_last_newline(runner, capsys, monkeypatch, data, prompt):
    feed(monkeypatch, data)
    assert main(["run", "b", "--prompt", "-", "--quiet"]) == 0
    assert said(runner, prompt=len(prompt.encode())) == prompt


def test_chat_applies_the_template(runner, capsys):
    assert main(["run", "b", "--prompt", "Where?", "--chat", "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == "Paris, of course.\n"
    prompt = "<system>Be brief.<user>Where?<assistant>"
    assert said(runner, prompt=len(prompt)) == prompt


def test_token_ids_and_logits(runner, capsys, tmp_path):
    options = ["--token-ids", "1,2, 3", "--logits", "logits.npy", "--max-tokens", "4", "--json"]
    assert main(["run", "b", *options]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert runner.history[:3] == [1, 2, 3]
    logits = np.load(tmp_path / "logits.npy")
    assert (logits.shape, logits.dtype) == ((4, EOS + 1), np.float32)
    assert logits.argmax(axis=1).tolist() == tokens == list(b"Pari")
    assert [path.name for path in tmp_path.iterdir()] == ["logits.npy"]


def test_without_a_tokenizer_ids_are_printed(runner, capsys, monkeypatch):
    def open_session(bundle: Path, *, verify: bool, threads: int | None) -> Session:
        return Session(runner, byte_text(has_tokenizer=False))

    monkeypatch.setattr("compiler.workflows.run.open_session", open_session)
    assert main(["run", "b", "--token-ids", "5,6", "--max-tokens", "3", "--quiet"]) == 0
    assert capsys.readouterr().out == "80 97 114 \n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], "usage", "there is no prompt"),
        (["--chat"], "usage", "--json needs a prompt"),
        (["--chat", "--token-ids", "1"], "usage", "--chat takes text, not --token-ids"),
        (["--prompt", "x", "--system", "y"], "usage", "--system goes with --chat"),
        (["--prompt", "x", "--token-ids", "1"], "usage", "argument --token-ids: not allowed with"),
        (["--token-ids", "1,x"], "usage", "'1,x' is not a list of token ids"),
        (["--prompt", "x", "--logits", "no/l.npy"], "usage", "there is no folder"),
        (["--prompt", "\udcff"], "usage", "the prompt is not UTF-8: byte 0xff at offset 0"),
        (["--prompt", "x", "--max-tokens", "0"], "generate-option", "max_tokens is 0"),
        (["--prompt", "x", "--top-p", "2"], "generate-option", "top_p is 2.0"),
        (["--prompt", "x" * 401], "context-full", "the prompt has 401 tokens, the context holds"),
        (["--token-ids", "999"], "run", "token id 999 is outside the vocabulary of 257"),
        (["--prompt", ""], "run", "no tokens were given"),
    ],
)
def test_what_cannot_be_run(runner, capsys, options, code, message):
    assert main(["run", "b", *options, "--json"]) == 2
    (error,) = json.loads(capsys.readouterr().out)["errors"]
    assert error["code"] == code
    assert error["message"].startswith(message)


def test_a_conversation_needs_a_terminal(runner, capsys, monkeypatch):
    feed(monkeypatch, b"hello\n")
    assert main(["run", "b", "--chat"]) == 2
    assert "a conversation needs a terminal" in capsys.readouterr().err


CONVERSATION = """
import sys, types
sys.path[:0] = [{root!r}, {here!r}]
import test_cli_run as stand_in
from compiler.stages.execute import Session
runner = stand_in.ScriptedRunner("Paris.", pause={pause})
import compiler.workflows.run
compiler.workflows.run.open_session = lambda *_, **__: Session(runner, stand_in.byte_text())
from compiler.cli import main
code = main(["run", "b", "--chat", *{options!r}])
print("read", runner.read, "code", code)
"""


class Conversation:
    """A child on a pseudo-terminal."""

    def __init__(self, *options: str, pause: float = 0.0) -> None:
        here = Path(__file__).parent
        code = CONVERSATION.format(
            root=str(here.parents[1]), here=str(here), pause=pause, options=options
        )
        self.terminal, child = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
            close_fds=True,
        )
        os.close(child)
        self.seen = ""

    def until(self, text: str) -> str:
        """Everything that appeared, up to `text`."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if not select.select([self.terminal], [], [], 0.2)[0]:
                continue
            try:
                self.seen += os.read(self.terminal, 4096).decode()
            except OSError as e:  # the child has closed the terminal
                raise AssertionError(f"no {text!r} in {self.seen!r}") from e
        before, _, self.seen = self.seen.partition(text)
        return before

    def say(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is not None:
            self.process.kill()
        self.process.wait(timeout=60)
        os.close(self.terminal)


def test_a_conversation_keeps_one_cache():
    with Conversation("--system", "S") as chat:
        chat.until("> ")
        chat.say("Where?\n")
        assert "Paris." in chat.until("ended by eos")
        chat.until("> ")
        chat.say("/rest\n")
        chat.until("there is no command /rest")
        chat.until("> ")
        chat.say("And?\n")
        chat.until("ended by eos")
        chat.until("> ")
        chat.say("/reset\n")
        chat.until("starting over")
        chat.until("> ")
        chat.say("Where?\n")
        chat.until("ended by eos")
        chat.until("> ")
        chat.say("/exit\n")
        chat.until("read ")
        read = chat.until(" code 0")
    first = len("<system>S<user>Where?<assistant>")
    second = len("<user>And?<assistant>")
    answer = [1] * len("Paris.")
    # After the reset the cache holds the prompt, whose last token alone is read again.
    assert json.loads(read) == [first, *answer, second, *answer, 1, *answer]


def test_ctrl_c_stops_an_answer_and_ctrl_d_leaves():
    with Conversation(pause=0.2) as chat:
        chat.until("> ")
        chat.say("Where?\n")
        chat.until("Pa")
        chat.process.send_signal(signal.SIGINT)
        assert "ris." not in chat.until("stopped")
        chat.until("> ")
        time.sleep(1)  # readline prints its prompt before it listens for signals
        chat.process.send_signal(signal.SIGINT)
        chat.until("> ")
        chat.say("\x04")
        chat.until("code 0")


def test_a_full_context_leaves_the_conversation_as_it_was():
    with Conversation() as chat:
        chat.until("> ")
        chat.say("x" * 390 + "\n")
        chat.until("/reset starts over")
        chat.until("> ")
        chat.say("Where?\n")
        assert "Paris." in chat.until("ended by eos")
        chat.until("> ")
        chat.say("/exit\n")
        chat.until("code 0")
