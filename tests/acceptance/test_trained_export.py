"""SmolLM2 exported to ONNX as a Qwen2 says what transformers says of its GGUF file.

At opset 23 norms, rotary embedding and attention are one node each.
"""

from pathlib import Path

import pytest
from trained_export import assert_64_tokens_equal

pytestmark = pytest.mark.accept


@pytest.mark.parametrize(("opset", "attention"), [(18, "eager"), (23, "sdpa")])
def test_the_same_64_tokens(tmp_path: Path, opset: int, attention: str) -> None:
    assert_64_tokens_equal(tmp_path, attention=attention, opset=opset)
