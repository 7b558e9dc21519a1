"""quantized program, tokens -> what the rounding of each weight costs, and which to leave out.

A weight is rounded alone, to nearest, in the program's float twin; its cost is the divergence of
the next-token distributions from the twin's, mean over the tokens. Only layers from the changed one
on run again, from the hidden states at its border, all weights of a layer side by side; memory
holds the hidden states of one layer's variants, and the logits of a window at a time. What all
rounded weights cost together is measured, never added up.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from compiler.comparing.measures import divergence, log_softmax
from compiler.contracts.errors import CheckFailed
from compiler.contracts.program import Program
from compiler.contracts.progress import Progress
from compiler.contracts.sensitivity import Exclusion, ModuleLoss
from compiler.contracts.weight_values import RowReader
from compiler.numerics.float_twin import QuantizedLinear
from compiler.numerics.layered_model import LayeredModel
from compiler.numerics.quantized_weights import module_of_part, quantized_parts
from compiler.numerics.rounded_weight import rounded_weight

Weights = Mapping[str, np.ndarray]


class RoundingLoss:
    """One model on one set of tokens.

    Args:
        program: A prefill program behind the quantizing pass.
        read: Its checkpoint's rows.
        tokens: int64 [samples, tokens], at most the context's.

    Attributes:
        weights: Every weight that is quantized, by its modules, in the order of computation.
    """

    def __init__(self, program: Program, read: RowReader, tokens: np.ndarray) -> None:
        self._model, self._read = LayeredModel(program, read), read
        self._tokens, self._window = tokens, program.tokens
        self._layers = [self._model.linears(layer) for layer in range(self._model.layers)]
        self._head = self._model.head_linears()
        every = [linear for layer in (*self._layers, self._head) for linear in layer]
        self.weights = {modules_of(linear): linear for linear in every}
        self._last: np.ndarray | None = None

    def of_each(self, *, progress: Progress) -> tuple[ModuleLoss, ...]:
        """The cost of each weight, in the order of computation.

        Raises:
            CheckFailed: The float model itself gives what is no number.
        """
        found: list[ModuleLoss] = []
        hidden = self._model.embed(self._tokens)
        for layer, linears in enumerate(self._layers):
            if linears:
                losses = self._streams_losses(self._variants(layer, linears, hidden))
                found += self._named(linears, losses)
            hidden = self._model.run_layer(layer, hidden, out=hidden)
            progress.update(layer + 1, self._model.layers, "layers")
        for linear in self._head:
            (loss,) = self._streams_losses(hidden[None], head=self._rounded([linear]))
            found += self._named([linear], [loss])
        return tuple(found)

    def of(self, rounded: Collection[tuple[str, ...]]) -> float:
        """The cost of rounding several weights at once, by their modules."""
        if not rounded:
            return 0.0
        chosen = {self.weights[modules].parameter for modules in rounded}
        states = self._model.embed(self._tokens)
        for layer, linears in enumerate(self._layers):
            weights = self._rounded([one for one in linears if one.parameter in chosen])
            states = self._model.run_layer(layer, states, weights=weights, out=states)
        head = self._rounded([one for one in self._head if one.parameter in chosen])
        return self._streams_losses(states[None], head=head)[0]

    def _variants(
        self, layer: int, linears: Sequence[QuantizedLinear], hidden: np.ndarray
    ) -> np.ndarray:
        """[variants, samples, tokens, width] at the end, each of one weight of a layer rounded."""
        streams = np.empty((len(linears), *hidden.shape), np.float32)
        for index, linear in enumerate(linears):
            weights = self._rounded([linear])
            streams[index] = self._model.run_layer(layer, hidden, weights=weights)
        flat = streams.reshape(-1, *hidden.shape[1:])
        for later in range(layer + 1, self._model.layers):
            self._model.run_layer(later, flat, out=flat)
        return streams

    def _streams_losses(self, streams: np.ndarray, *, head: Weights | None = None) -> list[float]:
        """Mean divergence of each stream's distributions from the float model's.

        Args:
            streams: Hidden states behind the last layer, [streams, samples, tokens, width].
            head: Weights of the head in place of the float ones.
        """
        totals = [0.0] * len(streams)
        samples, tokens = self._tokens.shape
        for start, stop in _spans(tokens, self._window):
            given = self._rows(streams, start, stop, head)
            for reference in self._rows(self._float_states()[None], start, stop, None):
                wanted = [_checked(log_softmax(row)) for row in reference]
                for index in range(len(streams)):
                    pairs = zip(wanted, next(given), strict=True)
                    totals[index] += sum(divergence(logs, log_softmax(row)) for logs, row in pairs)
        return [total / (samples * tokens) for total in totals]

    def _rows(
        self, streams: np.ndarray, start: int, stop: int, head: Weights | None
    ) -> Iterator[np.ndarray]:
        """Logits [window, vocabulary] of a span of whole windows: stream by stream for each."""
        width = streams.shape[-1]
        length = min(stop - start, self._window)
        part = streams[:, :, start:stop].reshape(*streams.shape[:2], -1, length, width)
        return self._model.head(part.transpose(1, 2, 0, 3, 4).reshape(-1, length, width), head)

    def _float_states(self) -> np.ndarray:
        """The float model's hidden states behind the last layer, computed once."""
        if self._last is None:
            states = self._model.embed(self._tokens)
            for layer in range(self._model.layers):
                states = self._model.run_layer(layer, states, out=states)
            self._last = states
        return self._last

    def _rounded(self, linears: Sequence[QuantizedLinear]) -> Weights:
        return {one.parameter: rounded_weight(one.codes, self._read) for one in linears}

    def _named(
        self, linears: Sequence[QuantizedLinear], losses: Sequence[float]
    ) -> list[ModuleLoss]:
        pairs = zip(linears, losses, strict=True)
        return [ModuleLoss(modules_of(linear), loss) for linear, loss in pairs]


def _checked(logs: np.ndarray) -> np.ndarray:
    if np.isnan(logs).any():
        raise CheckFailed(
            "the float model gives what is no number on the calibration data",
            hint="find the layer: python -m compiler compare model.yaml --level layer",
        )
    return logs


def modules_of(linear: QuantizedLinear) -> tuple[str, ...]:
    """The modules whose weights a linear's parameter holds."""
    parts = quantized_parts(linear.codes)
    return tuple(dict.fromkeys(module_of_part(part) for part in parts))


def ranked(losses: Sequence[ModuleLoss]) -> tuple[ModuleLoss, ...]:
    """The costliest first, and before all what is no number; of equal ones the first in order."""
    return tuple(sorted(losses, key=lambda one: (not math.isnan(one.kl), -one.kl)))


def exclude_for(
    loss: RoundingLoss,
    ranking: Sequence[ModuleLoss],
    *,
    target_loss: float,
    progress: Progress,
) -> Exclusion:
    """Keep the costliest weights as floats until the rest costs at most `target_loss` together.

    The number of them is found by bisection: what is returned was measured, and one weight fewer
    was measured to cost too much.

    Args:
        loss: The model.
        ranking: As `ranked` gives it.
        target_loss: In nats for each token.
        progress: Told of each measurement.
    """
    measured = {len(ranking): 0.0}
    low, high = -1, len(ranking)
    while high - low > 1:
        # All at first: most budgets leave nothing out.
        kept = 0 if low < 0 else (low + high) // 2
        measured[kept] = loss.of([one.modules for one in ranking[kept:]])
        progress.note(f"{kept} of {len(ranking)} weights kept: {measured[kept]:.4g} nats a token")
        if measured[kept] <= target_loss:
            high = kept
        else:
            low = kept
    modules = tuple(name for one in ranking[:high] for name in one.modules)
    return Exclusion(modules, measured[high], target_loss, len(ranking) - high)


def _spans(tokens: int, window: int) -> Iterator[tuple[int, int]]:
    """All whole windows, then what is left over."""
    whole = tokens // window * window
    if whole:
        yield 0, whole
    if whole < tokens:
        yield whole, tokens
