"""SmolLM2 exported to ONNX as a Qwen2 says what transformers says of its GGUF file."""

from pathlib import Path

import pytest
from trained_export import assert_64_tokens_equal


@pytest.mark.slow
@pytest.mark.model
def test_opset_18_with_eager_attention(tmp_path: Path) -> None:
    assert_64_tokens_equal(tmp_path, attention="eager", opset=18)
