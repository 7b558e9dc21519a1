"""A conversation of several turns on one cache.

Ctrl-C stops an answer, and what was said of it stays in the conversation; Ctrl-D or /exit leaves.
"""

from typing import TYPE_CHECKING

from compiler.contracts.errors import RunError
from compiler.terminal import Terminal

if TYPE_CHECKING:
    from compiler.stages.execute import GenerateOptions, Generation, Session
    from compiler.text import Message

_PROMPT = "> "
_COMMANDS = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def speeds(generation: "Generation") -> str:
    """The line under an answer."""
    prefill = f"{generation.prompt_tokens} tokens read in {generation.prefill_seconds:.2f} s"
    count = len(generation.tokens)
    decode = f"{count} written at {generation.decode_tokens_per_second:.1f} tokens/s"
    return f"{prefill}, {decode}, ended by {generation.finish_reason}"


def converse(
    session: "Session", options: "GenerateOptions", terminal: Terminal, *, system: str | None
) -> None:
    """Ask and answer until the user leaves.

    Args:
        session: The opened bundle.
        options: How to generate each answer.
        terminal: Where to print.
        system: The system prompt.
    """
    import readline

    readline.set_auto_history(True)
    start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages = list(start)
    terminal.note(_COMMANDS)
    while True:
        line = _ask()
        if line is None or line == "/exit":
            return
        if line == "/reset":
            messages = list(start)
            terminal.note("starting over")
        elif line.startswith("/") and line[1:].isalpha():
            terminal.note(f"there is no command {line}: {_COMMANDS}")
        elif line:
            messages = _turn(session, options, terminal, messages=messages, question=line)


def _ask() -> str | None:
    """The next line; empty after Ctrl-C, None after Ctrl-D."""
    try:
        return input(_PROMPT).strip()
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        print()
        return None


def _turn(
    session: "Session",
    options: "GenerateOptions",
    terminal: Terminal,
    *,
    messages: "list[Message]",
    question: str,
) -> "list[Message]":
    """Answer one question; the conversation with both, or as it was where there is no answer."""
    asked: list[Message] = [*messages, {"role": "user", "content": question}]
    pieces: list[str] = []
    try:
        for token in session.chat(asked, options):
            pieces.append(token.text)
            terminal.stream(token.text)
    except KeyboardInterrupt:
        terminal.stream("\n")
        terminal.note("stopped")
    except RunError as error:
        terminal.error(error)
        if error.code == "context-full":
            terminal.note("the conversation is too long: /reset starts over")
        return messages
    else:
        terminal.stream("\n")
        assert session.last is not None, "the stream ended without a result"
        terminal.note(speeds(session.last))
    if not pieces:
        return messages
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]
