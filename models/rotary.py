"""The rotary embedding of each rope type, and LogN attention scaling, as torch modules.

Arithmetic and its order are those of transformers' `modeling_rope_utils` in float32. Three types
are constants: `default` (RoFormer, https://arxiv.org/abs/2104.09864), `linear`
(https://arxiv.org/abs/2306.15595) and `yarn` (https://arxiv.org/abs/2309.00071). Two depend on how
many tokens the sequence has: `dynamic` (NTK-aware, https://arxiv.org/abs/2306.15595 and
https://arxiv.org/abs/2309.00071, appendix B.2) and `longrope` (https://arxiv.org/abs/2402.13753).
"""

import math
from collections.abc import Mapping

import torch
from torch import nn

from models.rope import DYNAMIC, LINEAR, LONGROPE, YARN, Rope


def frequency_tables(rope: Rope, head_dim: int) -> Mapping[str, torch.Tensor]:
    """Inverse frequencies [head_dim / 2], float32, by the name of the module's buffer."""
    if rope.kind == LONGROPE:
        return {
            "inv_freq": _divided(rope, head_dim, rope.short),
            "long_inv_freq": _divided(rope, head_dim, rope.long),
        }
    if rope.kind == YARN:
        return {"inv_freq": _yarn(rope, head_dim)}
    frequencies = 1.0 / (rope.theta ** _exponents(head_dim))
    return {"inv_freq": frequencies / rope.factor if rope.kind == LINEAR else frequencies}


def _exponents(head_dim: int) -> torch.Tensor:
    return torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim


def _divided(rope: Rope, head_dim: int, factors: tuple[float, ...]) -> torch.Tensor:
    divisors = torch.tensor(factors, dtype=torch.float32)
    return 1.0 / (divisors * rope.theta ** _exponents(head_dim))


def _yarn(rope: Rope, head_dim: int) -> torch.Tensor:
    """Fast dimensions as they are, slow ones over `factor`, a ramp between the two bounds."""

    def dimension(rotations: float) -> float:
        """The dimension that turns so often over the trained length."""
        turns = rope.trained / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - ramp
    periods = rope.theta ** _exponents(head_dim)
    return 1.0 / (rope.factor * periods) * (1 - kept) + 1.0 / periods * kept


class Rotary(nn.Module):
    """scaling * cos and sin of position times inverse frequency, each [1, 1, T, head_dim].

    Where the frequencies depend on the length of the sequence, that is the number of ones in the
    attention mask: past and valid tokens. Padding on the right counts for nothing.
    """

    inv_freq: torch.Tensor
    long_inv_freq: torch.Tensor

    def __init__(self, rope: Rope, head_dim: int) -> None:
        super().__init__()
        names = ("inv_freq", "long_inv_freq") if rope.kind == LONGROPE else ("inv_freq",)
        for name in names:
            self.register_buffer(name, torch.empty(head_dim // 2), persistent=False)
        self.rope = rope
        self.head_dim = head_dim

    def forward(
        self, position_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both for position_ids [1, T] and attention_mask [1, past + T]."""
        angles = position_ids[:, :, None].float() * self._frequencies(attention_mask)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        if self.rope.scaling == 1.0:
            return cos, sin
        return cos * self.rope.scaling, sin * self.rope.scaling

    def _frequencies(self, attention_mask: torch.Tensor) -> torch.Tensor:
        rope = self.rope
        if rope.kind not in (DYNAMIC, LONGROPE):
            return self.inv_freq
        length = attention_mask.sum(dim=-1)
        past_trained = self.long_inv_freq if rope.kind == LONGROPE else self._grown(length)
        return torch.where(length > rope.trained, past_trained, self.inv_freq)

    def _grown(self, length: torch.Tensor) -> torch.Tensor:
        """Frequencies of a base period that grows with the length."""
        rope, head_dim = self.rope, self.head_dim
        length = length.float().clamp(min=float(rope.trained))
        growth = rope.factor * length / rope.trained - (rope.factor - 1)
        base = rope.theta * growth ** (head_dim / (head_dim - 2))
        exponents = torch.arange(0, head_dim, 2, device=length.device).float() / head_dim
        return 1.0 / base**exponents


def logn_scale(position_ids: torch.Tensor, trained: int) -> torch.Tensor:
    """max(1, log_trained(position + 1)), as [1, 1, T, 1]: what queries past `trained` grow by.

    The first Qwen's `use_logn_attn` (its `logn_tensor`); the argument is Su's, "log n" attention
    scaling (https://kexue.fm/archives/8823).
    """
    scale = (position_ids + 1).float().log() / math.log(trained)
    return scale.clamp(min=1.0)[:, None, :, None]
