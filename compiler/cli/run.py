"""`run`: a bundle continues a prompt, answers a question, or holds a conversation."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.cli.conversation import converse, speeds
from compiler.contracts.errors import ConfigError, RunError
from compiler.ranks.world import current_world
from compiler.terminal import Terminal

if TYPE_CHECKING:
    from compiler.stages.execute import GenerateOptions, Generation, Session, Token
    from compiler.text import Message


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run once, or converse."""
    _check(options, terminal)
    is_conversation = options.prompt is None and options.token_ids is None
    prompts = [] if is_conversation else _prompts(options)

    from compiler.stages.execute import GenerateOptions
    from compiler.workflows.run import open_session

    generate = GenerateOptions(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=tuple(options.stop),
        keep_logits=options.logits is not None,
    )
    with open_session(options.bundle, verify=options.verify, threads=options.threads) as session:
        if is_conversation:
            converse(session, generate, terminal, system=options.system)
            return 0
        if len(prompts) > 1:
            return _run_each(session, prompts, generate, terminal)
        stream = _started(session, prompts[0], generate, options)
        return _run_once(session, stream, options, terminal)


def _check(options: argparse.Namespace, terminal: Terminal) -> None:
    """Refuse options that do not go together, before anything is opened."""
    has_prompt = options.prompt is not None or options.token_ids is not None
    world = current_world()
    is_alone = world is None or world.size == 1
    texts = options.prompt or []
    is_several = len(texts) > 1
    refusals = (
        (is_several and "-" in texts, "stdin holds one prompt"),
        (is_several and not is_alone, "several prompts are run by one process"),
        (is_several and options.chat, "--chat takes one prompt"),
        (is_several and options.logits is not None, "--logits takes one prompt"),
        (not has_prompt and not is_alone, "a conversation is held by one process"),
        ("-" in texts and not is_alone, "several processes cannot read one stdin"),
        (options.chat and options.token_ids is not None, "--chat takes text, not --token-ids"),
        (options.system is not None and not options.chat, "--system goes with --chat"),
        (not has_prompt and not options.chat, "there is no prompt"),
        (not has_prompt and terminal.is_json, "--json needs a prompt"),
        (not has_prompt and options.logits is not None, "--logits needs a prompt"),
        (not has_prompt and not sys.stdin.isatty(), "a conversation needs a terminal"),
    )
    for is_wrong, message in refusals:
        if is_wrong:
            hint = "give --prompt TEXT"
            hint += ", or --prompt - to read stdin" if is_alone else ""
            raise ConfigError(message, where="command line", hint=hint, code="usage")
    if options.logits is not None and not options.logits.absolute().parent.is_dir():
        message = f"there is no folder {options.logits.absolute().parent}"
        raise ConfigError(message, where="--logits", hint="make it first", code="usage")


def _prompts(options: argparse.Namespace) -> list[str | list[int]]:
    if options.token_ids is not None:
        return [_token_ids(options.token_ids)]
    return [_text(given) for given in options.prompt]


def _text(given: str) -> str:
    raw = sys.stdin.buffer.read() if given == "-" else os.fsencode(given)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        message = f"the prompt is not UTF-8: byte 0x{raw[e.start]:02x} at offset {e.start}"
        raise RunError(message, where="--prompt", hint="give it as UTF-8", code="usage") from e
    # A text file ends with a newline that nobody means as a part of the prompt.
    return text.removesuffix("\n") if given == "-" else text


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as e:
        message = f"'{text}' is not a list of token ids"
        hint = "write --token-ids 1,2,3"
        raise ConfigError(message, where="--token-ids", hint=hint, code="usage") from e


def _started(
    session: "Session",
    prompt: str | list[int],
    generate: "GenerateOptions",
    options: argparse.Namespace,
) -> "Iterator[Token]":
    if not options.chat:
        return session.generate(prompt, generate)
    assert isinstance(prompt, str), "checked with the options"
    messages: list[Message] = [{"role": "user", "content": prompt}]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    return session.chat(messages, generate)


def _run_once(
    session: "Session",
    stream: "Iterator[Token]",
    options: argparse.Namespace,
    terminal: Terminal,
) -> int:
    is_text = session.text.has_tokenizer
    for token in stream:
        if not terminal.is_json:
            terminal.stream(token.text if is_text else f"{token.id} ")
    generation = session.last
    assert generation is not None, "the stream ended without a result"
    world = current_world()
    if options.logits is not None and (world is None or world.rank == 0):
        _save_logits(generation, options.logits)
    if terminal.is_json:
        terminal.json(_json(generation))
        return 0
    terminal.stream("\n")
    terminal.note(speeds(generation))
    return 0


def _run_each(
    session: "Session",
    prompts: "list[str | list[int]]",
    generate: "GenerateOptions",
    terminal: Terminal,
) -> int:
    """All at once; what each gives is shown when all are done, in their order."""
    generations = session.generate_each(prompts, generate)
    if terminal.is_json:
        terminal.json({"generations": [_json(one) for one in generations]})
        return 0
    is_text = session.text.has_tokenizer
    for number, generation in enumerate(generations, start=1):
        shown = generation.text if is_text else " ".join(map(str, generation.tokens))
        terminal.stream(f"{shown}\n")
        terminal.note(f"prompt {number}: {speeds(generation)}")
    return 0


def _json(generation: "Generation") -> dict[str, object]:
    return {
        "prompt_tokens": generation.prompt_tokens,
        "tokens": list(generation.tokens),
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "prefill_seconds": generation.prefill_seconds,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
    }


def _save_logits(generation: "Generation", path: Path) -> None:
    import numpy as np

    assert generation.logits is not None, "the logits were asked for"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as stream:
            np.save(stream, generation.logits)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
