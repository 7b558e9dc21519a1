"""Shows what a graph's kernels take and leave, through the VM's instrument: nothing is rebuilt.

TVM's virtual machine calls an instrument before and after every kernel, with the kernel's name and
its arguments, outputs last (https://github.com/apache/tvm/blob/main/src/runtime/vm/vm.cc,
`RunInstrCall`). The kernels of this target are never fused, so nearly every tap lies in memory as
an argument of one, and other arguments say which: a weight's address belongs to a module, a cache's
to a layer.

    rms_norm(x, weight, y)                    x: embed, resid1, resid2    y: norm1, norm2, norm
    add_rms_norm(a, b, weight, x, y)          x: resid1, resid2           y: the same
    linear(x, weight, [scale, bias,] y)       x: attn, act                y: q, k, v, o, gate, ..
    packed_linear(x, weight, .., weight', .., y, y')    the same, of each weight
    integer_linear(codes, scales, weight, ..) the same; x is what quantize_tokens made the codes of
    cache_update(cache, rows, ..)             rows: k_rot
    quantized_cache_update(codes, scales, rows, ..)     likewise
    attention(q, keys, values, ..)            q: q_rot, then keys and values, the rows written

A product by TVM (16-bit arithmetic) shows the same where its result is the module's; a weight that
a kernel widened or turned first still is that module's. What follows from no address is not shown:
q, k and v of one joined weight, gate and up likewise or where one kernel makes their activation, o
and down where TVM added the residual in the same kernel, norms and attention that were not fused.

Taps come in the order of the kernels, inputs before a kernel runs and outputs after it, so k_rot
stands before q_rot. A value that an observer puts in place is written where it lies, or rounded to
codes again; where the kernel that made it has read it already, as the norm of a sum has, the kernel
runs again. The residual's next sum must read it there too: where a norm reads a copy, as with
`cast-dtype`, replacing is refused.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.bundle import ModuleEntry
from compiler.contracts.errors import TargetError
from compiler.contracts.int8_scales import quantized_rows
from compiler.contracts.taps import Observer, Tap
from compiler.relax.lean import import_tvm_ffi
from compiler.relax.parameters import aligned_copy, aligned_zeros
from compiler.relax.raised import Raised
from targets.llvm.rounded_tokens import RoundedTokens
from targets.llvm.tensor_memory import cache_name, cached_rows, memory_of

if TYPE_CHECKING:
    import tvm_ffi

# A layer's modules -> what they take, and what they leave.
_TAKEN = {"post_attention_layernorm": "resid1", "self_attn.o_proj": "attn", "mlp.down_proj": "act"}
_LEFT = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_FINAL_NORM = "model.norm"
# Where the attention kernel takes a cache; scales, where it has them, are two arguments on.
_CACHED = {"keys": 1, "values": 2}
# The dtype of `valid_length`, which kernels over rows take.
_LENGTH = "int64"
_RESIDUALS = ("embed", "resid1", "resid2")
# Kernels of (x, weight, ...): ours, and TVM's own products. Digits tell equal names apart.
_OF_MODULE = re.compile(
    r"((add_)?rms_norm|linear|packed_linear|gated_linear|integer_linear|(fused_)?matmul\d*(_add\d*)?(_cast\d*)?)\d*"
)


def _taps_by_module(layers: int) -> tuple[dict[str, Tap], dict[str, Tap]]:
    """Module -> the tap that it takes; module -> the tap that it leaves."""
    taken = {_FINAL_NORM: Tap(layers - 1, "resid2")}
    left = {_FINAL_NORM: Tap(None, "norm")}
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        taken |= {f"{stem}.{module}": Tap(layer, point) for module, point in _TAKEN.items()}
        left |= {f"{stem}.{module}": Tap(layer, point) for module, point in _LEFT.items()}
        before = Tap(None, "embed") if layer == 0 else Tap(layer - 1, "resid2")
        taken[f"{stem}.input_layernorm"] = before
    return taken, left


def _module_of(params: frozenset[str]) -> str | None:
    """The module that all of them belong to."""
    modules = {name.rpartition(".")[0] for name in params}
    return modules.pop() if len(modules) == 1 else None


class Instrument:
    """Shows the kernels of one graph to an observer; the VM calls it before and after each."""

    def __init__(
        self,
        observer: Observer,
        entry: ModuleEntry,
        *,
        params: Sequence["tvm_ffi.Tensor"],
        caches: Mapping[str, "tvm_ffi.Tensor"],
        layers: int,
    ) -> None:
        self._observer = observer
        self._tokens = entry.tokens
        # With several prompts at once, the first row is that of slot 0.
        ids = next(spec for spec in entry.inputs if spec.name == "input_ids")
        self._rows = int(ids.shape[-1])
        self._names = {
            tensor.data_ptr(): frozenset({name})
            for name, tensor in zip(entry.params, params, strict=True)
        }
        self._params: dict[str, set[str]] = {}
        for name in entry.params:
            self._params.setdefault(name.rpartition(".")[0], set()).add(name)
        self._key_caches = {
            caches[cache_name(layer, "key")].data_ptr(): layer for layer in range(layers)
        }
        self._taken, self._left = _taps_by_module(layers)
        self._tensor: type[tvm_ffi.Tensor] = import_tvm_ffi().Tensor
        self._begin(past=0, valid=0)

    def _begin(self, *, past: int, valid: int) -> None:
        self._past, self._valid = past, valid
        self._shown: set[Tap] = set()
        # Address of a weight in another form -> the parameters that it was made of.
        self._forms: dict[int, frozenset[str]] = {}
        # Address of int8 codes -> the value that they were made of.
        self._rounded: dict[int, RoundedTokens] = {}
        # Address and tap of a replaced residual that no sum has read yet.
        self._unread: tuple[int, Tap] | None = None
        self._raised = Raised()

    def run(
        self,
        function: Callable[..., Sequence["tvm_ffi.Tensor"]],
        arguments: Sequence["tvm_ffi.Tensor"],
        *,
        past: int,
        valid: int,
    ) -> Sequence["tvm_ffi.Tensor"]:
        """Call the graph whose VM carries this instrument.

        Raises:
            TargetError: A residual was replaced of which the norm reads a copy.
            BaseException: What the observer raised, as it is.
        """
        self._begin(past=past, valid=valid)
        with self._raised.restored():
            outputs = function(*arguments)
        if self._unread is not None:
            raise _was_copied(self._unread[1])
        return outputs

    def see_logits(self, logits: np.ndarray) -> None:
        """Show the result, float32 [vocabulary], and put in place what comes back."""
        self._show(Tap(None, "logits"), logits.reshape(1, -1))

    def __call__(
        self,
        function: "Callable[..., object]",
        name: str,
        is_before: bool,
        _result: object,
        *arguments: object,
    ) -> None:
        """As the VM asks; its own builtins move no values."""
        if name.startswith("vm.builtin."):
            return
        with self._raised.kept():
            tensors = [argument for argument in arguments if isinstance(argument, self._tensor)]
            stem = name.rstrip("0123456789")
            if (
                stem in ("integer_linear", "packed_linear", "gated_linear")
                and str(tensors[0].dtype) == "int8"
            ):
                # As `linear` has them: (x, weight, ..), without the scales of x.
                del tensors[1]
            if stem in ("packed_linear", "add_rms_norm") and not is_before:
                self._after_several(function, stem, tensors)
            else:
                self._before(name, tensors) if is_before else self._after(name, tensors)

    def _before(self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        self._note_reading(tensors)
        self._note_rounding(kernel, tensors)
        for tap, rows in self._inputs(kernel, tensors):
            is_replaced = self._show(tap, rows)
            if is_replaced and tap.point in _CACHED:
                self._put_back(rows, tensors[_CACHED[tap.point] :])
            elif is_replaced and (rounded := self._rounded.get(tensors[0].data_ptr())):
                rounded.round_again()
            is_added_later = tap.point in _RESIDUALS and tap != self._taken[_FINAL_NORM]
            if is_replaced and is_added_later:
                self._unread = (tensors[0].data_ptr(), tap)

    def _put_back(self, rows: np.ndarray, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        """Round replaced rows of an int8 cache into it; those of another were its own memory."""
        codes, _, scales = tensors[:3]
        if str(codes.dtype) != "int8":
            return
        written = slice(self._past, self._past + self._valid)
        cache = memory_of(codes)
        rounded = quantized_rows(rows.reshape(cache[written].shape))
        cache[written], memory_of(scales)[written] = rounded

    def _after(self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        module = self._module(kernel, tensors)
        if module in self._left and self._is_whole(module, tensors):
            for tap, rows in self._by_token(self._left[module], tensors[-1], rows=self._rows):
                self._show(tap, rows)
        self._note_form(kernel, tensors)

    def _after_several(
        self,
        function: "Callable[..., object]",
        kernel: str,
        tensors: Sequence["tvm_ffi.Tensor"],
    ) -> None:
        """Kernels of ours with a result for each weight, or a sum beside its norm."""
        modules = self._modules(tensors)
        outputs = tensors[len(tensors) - len(modules) :]
        for (module, params), output in zip(modules.items(), outputs, strict=True):
            if kernel == "add_rms_norm":
                self._show_sum(function, self._taken[module], tensors)
            if module in self._left and params == self._params[module]:
                for tap, rows in self._by_token(self._left[module], output, rows=self._rows):
                    self._show(tap, rows)

    def _modules(self, tensors: Sequence["tvm_ffi.Tensor"]) -> dict[str, set[str]]:
        """The modules whose parameters are among the arguments, in order, and which they are."""
        found: dict[str, set[str]] = {}
        for tensor in tensors:
            for name in self._names.get(tensor.data_ptr(), ()):
                found.setdefault(name.rpartition(".")[0], set()).add(name)
        return found

    def _show_sum(
        self,
        function: "Callable[..., object]",
        tap: Tap,
        tensors: Sequence["tvm_ffi.Tensor"],
    ) -> None:
        """Show the residual; of one that is put in place, the norm is made anew."""
        *given, total, normed = tensors
        for one, rows in self._by_token(tap, total, rows=self._rows):
            if not self._show(one, rows):
                continue
            ffi = import_tvm_ffi()
            replaced = aligned_copy(memory_of(total))
            zeros = aligned_zeros(replaced.shape, replaced.dtype)
            function(*map(ffi.from_dlpack, (replaced, zeros)), *given[2:], total, normed)

    def _inputs(
        self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]
    ) -> Iterator[tuple[Tap, np.ndarray]]:
        """What a kernel is about to read."""
        layers = [self._key_caches.get(tensor.data_ptr()) for tensor in tensors[:2]]
        match kernel.rstrip("0123456789"), layers:
            case "cache_update", [int(layer), _]:
                yield from self._by_token(Tap(layer, "k_rot"), tensors[1], rows=self._tokens)
            case "quantized_cache_update", [int(layer), _]:
                yield from self._by_token(Tap(layer, "k_rot"), tensors[2], rows=self._tokens)
            case "attention", [_, int(layer)]:
                yield from self._by_token(Tap(layer, "q_rot"), tensors[0], rows=self._tokens)
                written = self._past, self._past + self._valid
                is_int8 = str(tensors[1].dtype) == "int8"
                k_scales, v_scales = tensors[3:5] if is_int8 else (None, None)
                yield Tap(layer, "keys"), cached_rows(tensors[1], *written, scales=k_scales)
                yield Tap(layer, "values"), cached_rows(tensors[2], *written, scales=v_scales)
            case _:
                module = self._module(kernel, tensors)
                if module in self._taken and not kernel.startswith("add_rms_norm"):
                    yield from self._by_token(self._taken[module], tensors[0], rows=self._rows)

    def _module(self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]) -> str | None:
        """Whose weight a kernel of (x, weight, ...) takes."""
        if len(tensors) < 3 or _OF_MODULE.fullmatch(kernel) is None:
            return None
        return None if self._made_of(tensors[:1]) else _module_of(self._made_of(tensors[1:2]))

    def _made_of(self, tensors: Sequence["tvm_ffi.Tensor"]) -> frozenset[str]:
        """The parameters behind all of them; none where one is no parameter."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        found = [self._names.get(one) or self._forms.get(one, frozenset()) for one in addresses]
        return frozenset[str]().union(*found) if all(found) else frozenset()

    def _is_whole(self, module: str, tensors: Sequence["tvm_ffi.Tensor"]) -> bool:
        """Whether the result is the module's: of all its parameters, and of nothing else."""
        operands = [one for one in tensors[1:-1] if str(one.dtype) != _LENGTH]
        return self._made_of(operands) == self._params[module]

    def _note_form(self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        """A kernel that takes one module's parameters alone makes another form of its weight."""
        made_of = self._made_of(tensors[:-1])
        # Memory is used again: a form ends where it was multiplied, or is overwritten.
        ended = tensors[1:] if _OF_MODULE.fullmatch(kernel) is not None else tensors[-1:]
        for tensor in ended:
            self._forms.pop(tensor.data_ptr(), None)
        if _module_of(made_of) is not None:
            self._forms[tensors[-1].data_ptr()] = made_of

    def _note_rounding(self, kernel: str, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        """Keep what is about to be rounded: the products read its codes alone."""
        self._rounded.pop(tensors[-1].data_ptr() if tensors else 0, None)
        if kernel.startswith("quantize_tokens"):
            x, *_, codes, scales = tensors
            self._rounded[codes.data_ptr()] = RoundedTokens(memory_of(x).copy(), codes, scales)

    def _by_token(
        self, tap: Tap, tensor: "tvm_ffi.Tensor", *, rows: int
    ) -> Iterator[tuple[Tap, np.ndarray]]:
        """The real tokens' rows of a value; nothing where it has not a row for each token."""
        shape = tuple(tensor.shape)
        if str(tensor.dtype) == "int8":
            if rounded := self._rounded.get(tensor.data_ptr()):
                yield tap, rounded.rows[: self._valid]
        elif shape[:1] == (rows,) or shape[:2] == (1, rows):
            yield tap, memory_of(tensor).reshape(rows, -1)[: self._valid]

    def _show(self, tap: Tap, rows: np.ndarray) -> bool:
        """Whether the observer put other values in place; a shared weight's tap is shown once."""
        if tap.point not in self._observer.points or tap in self._shown:
            return False
        self._shown.add(tap)
        given = self._observer.see(tap, rows.astype(np.float32))
        if given is None:
            return False
        assert given.shape == rows.shape, f"{tap} is {rows.shape}, was given {given.shape}"
        rows[...] = given
        return True

    def _note_reading(self, tensors: Sequence["tvm_ffi.Tensor"]) -> None:
        """Refuse a replaced residual that is overwritten before a sum has read it."""
        if self._unread is None:
            return
        address, tap = self._unread
        addresses = [tensor.data_ptr() for tensor in tensors]
        if address in addresses[:-1]:
            self._unread = None
        elif address in addresses:
            raise _was_copied(tap)


def _was_copied(tap: Tap) -> TargetError:
    return TargetError(
        f"{tap} cannot be replaced: the norm of this bundle reads a copy of the residual",
        hint="build without 'cast-dtype' to replace residuals; watching them works",
    )
