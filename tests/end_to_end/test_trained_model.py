"""SmolLM2-135M, built in fp32, says what transformers says of the same GGUF file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reference_model import reference_logits
from trained_model import WINDOW, largest_difference, prompts, trained_reference
from transformers import PreTrainedModel

from compiler.contracts.runner import WindowedRunner
from compiler.stages.execute import GenerateOptions, Session
from compiler.text import Message
from compiler.workflows.run import open_session

pytestmark = [pytest.mark.slow, pytest.mark.model]

TOKENS = 64
TOLERANCE = 1e-3
PROMPTS = (
    "english",
    "code",
    "chinese",
    "empty system prompt",
    "one token",
    "longer than the window",
    "ends at the window's edge",
    "ends at the second window's edge",
    "padding of window - 1",
)


@pytest.fixture(scope="module")
def session(trained_bundle: Path) -> Iterator[Session]:
    with open_session(trained_bundle) as session:
        yield session


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return trained_reference()


def test_the_prompts_are_what_their_names_say(session: Session) -> None:
    found = prompts(session.text)
    assert tuple(found) == PROMPTS
    lengths = {name: len(ids) for name, ids in found.items()}
    assert lengths["one token"] == 1
    assert lengths["longer than the window"] > WINDOW
    assert lengths["ends at the window's edge"] == WINDOW
    assert lengths["ends at the second window's edge"] == 2 * WINDOW
    assert lengths["padding of window - 1"] == WINDOW + 1
    assert "system\n<|im_end|>" in session.text.template.render(  # type: ignore[union-attr]
        [{"role": "system", "content": ""}, {"role": "user", "content": "?"}]
    )


@pytest.mark.parametrize("name", PROMPTS)
def test_64_greedy_tokens_equal_transformers(
    session: Session, reference: PreTrainedModel, name: str
) -> None:
    """Each token is the reference's choice after the same tokens: so are then all of them."""
    prompt = prompts(session.text)[name]
    runner = session.runner
    runner.rewind(0)
    rows, tokens = [runner.extend(prompt)], []
    while len(tokens) < TOKENS:
        tokens.append(int(rows[-1].argmax()))
        rows.append(runner.extend(tokens[-1:]))
    wanted = reference_logits(reference, [*prompt, *tokens])[len(prompt) - 1 :]
    assert tokens == wanted[:-1].argmax(axis=1).tolist()
    assert largest_difference(np.stack(rows), wanted) < TOLERANCE


@pytest.mark.parametrize("past", [0, WINDOW])
def test_one_valid_token_in_a_padded_window(
    session: Session, reference: PreTrainedModel, past: int
) -> None:
    prompt = prompts(session.text)["padding of window - 1"]
    runner = session.runner
    assert isinstance(runner, WindowedRunner)
    runner.rewind(0)
    if past:
        runner.extend(prompt[:past])
    window = np.zeros((1, WINDOW), np.int64)
    window[0, 0] = prompt[past]
    logits = runner.step("prefill", window, past=past, valid=1)
    wanted = reference_logits(reference, prompt[: past + 1])[-1]
    assert largest_difference(logits, wanted) < TOLERANCE


def test_the_model_answers_and_ends(session: Session) -> None:
    messages: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
    text = "".join(token.text for token in session.chat(messages, GenerateOptions(max_tokens=64)))
    assert "Paris" in text
    assert session.last is not None
    assert session.last.finish_reason == "eos"
    assert session.last.tokens[-1] in session.text.eos
    assert session.last.text == text
