"""SmolLM2 exported at opset 23, where norms, rotary embedding and attention are one node each."""

from pathlib import Path

import pytest
from trained_export import assert_64_tokens_equal


@pytest.mark.accept
def test_opset_23_with_sdpa_attention(tmp_path: Path) -> None:
    assert_64_tokens_equal(tmp_path, attention="sdpa", opset=23)
