"""A quantized prefill program without its rounding, run one layer at a time over many samples.

    hidden = model.embed(tokens)                       # [samples, tokens, width]
    for layer in range(model.layers):
        hidden = model.run_layer(layer, hidden)
    for logits in model.head(hidden): ...              # of one window, [tokens, vocabulary]

Memory holds the hidden states of all samples and the weights of one layer. A sample longer than the
window is read in windows, with that layer's cache between them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import sched_getaffinity

import numpy as np
import onnx

from compiler.contracts.program import Program
from compiler.contracts.weight_values import RowReader, chunks, value
from compiler.contracts.weights import DTYPES, Weight
from compiler.numerics.float_twin import QuantizedLinear, float_twin
from compiler.numerics.layer_pieces import Piece, cut_at_layers
from compiler.numerics.reference_run import ReferenceSession, ort_value

_CACHE_PREFIX = "past_key_values."
# operand of a linear (`QuantizedLinear.operand`), its rows of real tokens: float32 [tokens, in]
Watch = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class _Window:
    """Tokens `past : past + valid` of a sample."""

    past: int
    valid: int


class LayeredModel:
    """The float twin of a program, in pieces.

    Args:
        program: A prefill program behind the quantizing pass.
        read: Its checkpoint's rows.
        threads: Of one operator; by default one for each core that this process may use.
        is_optimised: Let onnxruntime fuse operators; without it, sums are in the graph's order.

    Attributes:
        layers: Their number.
        context: Most tokens of a sample.

    Raises:
        PassError: The program has no float twin, or cannot be cut at its layers.
    """

    def __init__(
        self,
        program: Program,
        read: RowReader,
        *,
        threads: int | None = None,
        is_optimised: bool = True,
    ) -> None:
        twin = float_twin(program)
        self._program, self._read, self._linears = twin.program, read, twin.linears
        self._pieces = cut_at_layers(
            twin.program, list(dict.fromkeys(linear.operand for linear in twin.linears))
        )
        self._threads = threads or len(sched_getaffinity(0))
        self._is_optimised = is_optimised
        self._sessions: dict[bytes, ReferenceSession] = {}
        self._past_of = {
            spec.name: twin.program.aliases.get(
                spec.name, spec.name.replace("present.", _CACHE_PREFIX, 1)
            )
            for spec in twin.program.outputs()
        }
        self.layers, self.context = twin.program.layers, twin.program.context

    def linears(self, layer: int) -> tuple[QuantizedLinear, ...]:
        """The quantized linears of a layer, in the order of computation."""
        inputs = self._pieces.layers[layer].inputs
        return tuple(linear for linear in self._linears if linear.parameter in inputs)

    def head_linears(self) -> tuple[QuantizedLinear, ...]:
        """The quantized linears behind the last layer."""
        inputs = self._pieces.head.inputs
        return tuple(linear for linear in self._linears if linear.parameter in inputs)

    def layer_weights(self, layer: int) -> dict[str, np.ndarray]:
        """The parameters of a layer by name, as its graph takes them: the unrounded ones."""
        return self._parameters(self._pieces.layers[layer])

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """Hidden states before the first layer, float32 [samples, tokens, width].

        Args:
            tokens: int64 [samples, tokens], at most the context's.
        """
        piece, border = self._pieces.embed, self._pieces.borders[0]
        distinct, ids = np.unique(tokens, return_inverse=True)
        run = self._runner(piece, self._rows_of_tables(piece, distinct))
        found: np.ndarray | None = None
        for sample, row in enumerate(ids.reshape(tokens.shape)):
            for window in self._windows(tokens.shape[1]):
                given = self._padded(row[None, window.past : window.past + window.valid])
                made = run({**self._lengths(window), "input_ids": given})[border]
                if found is None:
                    found = np.empty((*tokens.shape, made.shape[-1]), np.float32)
                found[sample, window.past : window.past + window.valid] = made[0, : window.valid]
        assert found is not None, "no samples"
        return found

    def run_layer(
        self,
        layer: int,
        hidden: np.ndarray,
        *,
        weights: Mapping[str, np.ndarray] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """What a layer makes of hidden states.

        Args:
            layer: Which.
            hidden: float32 [samples, tokens, width].
            weights: Instead of a parameter's float value, in that shape (`layer_weights`).
            out: Where the result goes; may be `hidden` itself.
        """
        target = self._pieces.borders[layer + 1]
        result = np.empty_like(hidden) if out is None else out
        for sample, window, made in self._layer_calls(layer, hidden, weights or {}):
            span = slice(window.past, window.past + window.valid)
            result[sample, span] = made[target][0, : window.valid]
        return result

    def watch_layer(
        self,
        layer: int,
        hidden: np.ndarray,
        watch: Watch,
        *,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Show what each operand of a layer's quantized linears is, window by window.

        Args:
            layer: Which.
            hidden: What the layer takes.
            watch: Called once a window for each operand.
            weights: As for `run_layer`.
        """
        operands = dict.fromkeys(linear.operand for linear in self.linears(layer))
        for _, window, made in self._layer_calls(layer, hidden, weights or {}):
            for operand in operands:
                rows = made[operand][0, : window.valid]
                watch(operand, rows.astype(np.float32, copy=False))

    def _layer_calls(
        self, layer: int, hidden: np.ndarray, weights: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[int, _Window, dict[str, np.ndarray]]]:
        """A layer's graph, sample by sample and window by window: what each call gives."""
        piece, source = self._pieces.layers[layer], self._pieces.borders[layer]
        run = self._runner(piece, self._parameters(piece) | dict(weights))
        for sample, states in enumerate(hidden):
            caches: dict[str, np.ndarray] = {}
            for window in self._windows(hidden.shape[1]):
                span = slice(window.past, window.past + window.valid)
                given = {source: self._padded(states[None, span]), **self._lengths(window)}
                made = run({**given, **self._empty_caches(piece, window.past), **caches})
                caches = self._carried(piece, made, window)
                yield sample, window, made

    def head(
        self, hidden: np.ndarray, weights: Mapping[str, np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Logits of every token, float32 [tokens of a window, vocabulary], sample by sample.

        Args:
            hidden: float32 [samples, tokens, width].
            weights: Instead of a parameter's float value, in that shape.
        """
        piece, border = self._pieces.head, self._pieces.borders[-1]
        run = self._runner(piece, self._parameters(piece) | dict(weights or {}))
        for states in hidden:
            for window in self._windows(hidden.shape[1]):
                span = slice(window.past, window.past + window.valid)
                given = {border: self._padded(states[None, span]), **self._lengths(window)}
                yield run(given)["logits"][0, : window.valid].astype(np.float32, copy=False)

    def _runner(
        self, piece: Piece, parameters: Mapping[str, np.ndarray]
    ) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
        """A call of a piece, in the program's names; equal pieces have one session."""
        if piece.model not in self._sessions:
            self._sessions[piece.model] = ReferenceSession(
                onnx.load_from_string(piece.model),
                threads=self._threads,
                is_optimised=self._is_optimised,
            )
        session = self._sessions[piece.model]
        held = {piece.inputs[name]: ort_value(array) for name, array in parameters.items()}

        def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            given = {
                piece.inputs[name]: array.astype(_dtype(piece.dtypes[name]), copy=False)
                for name, array in feeds.items()
                if name in piece.inputs
            }
            made = session.run({**held, **given})
            return {name: made[canonical] for name, canonical in piece.outputs.items()}

        return run

    def _parameters(self, piece: Piece) -> dict[str, np.ndarray]:
        weights = self._program.weights
        return {name: value(weights[name], self._read) for name in piece.inputs if name in weights}

    def _rows_of_tables(self, piece: Piece, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Of the embedding's tables the rows of some tokens, in their order."""
        weights = self._program.weights
        return {
            name: _chosen_rows(weights[name], self._read, tokens)
            if name in piece.tables
            else value(weights[name], self._read)
            for name in piece.inputs
            if name in weights
        }

    def _windows(self, tokens: int) -> Iterator[_Window]:
        assert 0 < tokens <= self.context, f"{tokens} tokens in a context of {self.context}"
        step = self._program.tokens
        for past in range(0, tokens, step):
            yield _Window(past, min(step, tokens - past))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """[1, valid, ...] with zeros to the window's length."""
        padding = np.zeros((1, self._program.tokens - rows.shape[1], *rows.shape[2:]), rows.dtype)
        return np.concatenate([rows, padding], axis=1)

    def _lengths(self, window: _Window) -> dict[str, np.ndarray]:
        """The lengths in every form that a program may take them in."""
        width, past, valid = self._program.tokens, window.past, window.valid
        return {
            "input_ids": np.zeros((1, width), np.int64),
            "attention_mask": (np.arange(past + width) < past + valid).astype(np.int64)[None],
            "position_ids": np.arange(past, past + width, dtype=np.int64)[None],
            "past_length": np.array([past], np.int64),
            "valid_length": np.array([valid], np.int64),
        }

    def _empty_caches(self, piece: Piece, past: int) -> dict[str, np.ndarray]:
        """Zeros: what a layer starts from, and for caches of which only the length is read."""
        return {
            name: np.zeros(
                [past if isinstance(n, str) else n for n in shape], _dtype(piece.dtypes[name])
            )
            for name, shape in piece.shapes.items()
            if name.startswith(_CACHE_PREFIX)
        }

    def _carried(
        self, piece: Piece, made: Mapping[str, np.ndarray], window: _Window
    ) -> dict[str, np.ndarray]:
        """The caches for the next window; growing ones are cut to real tokens."""
        end = window.past + window.valid
        return {
            self._past_of[name]: array if name in self._program.aliases else array[:, :, :end]
            for name, array in made.items()
            if self._past_of.get(name) in piece.inputs
        }


def _chosen_rows(weight: Weight, read: RowReader, wanted: np.ndarray) -> np.ndarray:
    """Rows of a matrix by sorted index, read a block at a time."""
    found: list[np.ndarray] = []
    start = 0
    for block in chunks(weight, read):
        low, high = np.searchsorted(wanted, [start, start + len(block)])
        found.append(block[wanted[low:high] - start])
        start += len(block)
    return np.concatenate(found)


def _dtype(element: int) -> np.dtype:
    if element == onnx.TensorProto.BFLOAT16:
        return DTYPES["bfloat16"]
    return onnx.helper.tensor_dtype_to_np_dtype(element)
