"""transformers on torch, as it stands: eager execution, a cache that grows."""

from collections.abc import Sequence
from typing import ClassVar

from benchmarks.contenders.base import Contender


class EagerTorch(Contender):
    """`AutoModelForCausalLM` in one dtype."""

    modules: ClassVar = ("torch", "transformers")
    install: ClassVar = "it is a dependency of graphlower"
    dtypes: ClassVar = {"fp32": "fp32", "bf16": "bf16"}

    def make(self) -> None:
        """It reads the checkpoint itself."""

    def load(self) -> None:
        """As many threads as the others get."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self.job.threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.job.dtype]
        model = AutoModelForCausalLM.from_pretrained(self.job.checkpoint, dtype=dtype)
        self._model = model.eval()

    def prefill(self, tokens: Sequence[int]) -> int:
        """Logits of the last token alone."""
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        return self._run(tokens)

    def step(self, token: int) -> int:
        """The cache grows by a concatenation."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> int:
        import torch

        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor([list(tokens)]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return int(out.logits[0, -1].argmax())
