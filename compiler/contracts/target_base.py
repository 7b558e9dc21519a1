"""What a target is: it says what it can do, lowers programs, and opens what it can run.

A target's module is imported to list and probe it: heavy libraries stay inside the methods.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError, RunError, TargetError
from compiler.contracts.pass_base import Skip
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.contracts.taps import Observer
from compiler.contracts.weights import CheckpointRef

OptionValue = str | int | float | bool | None | Sequence[str]


@dataclass(frozen=True)
class Probe:
    """What a target can do on this machine; `missing` says what is lacking and how to get it."""

    can_build: bool
    can_run: bool
    missing: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class TargetOptions:
    """The part of the configuration that a target sees.

    Attributes:
        dtype: `fp32`, `bf16`, `fp16` or `int8` (`backend.dtype`).
        compute_dtype: What a model of dtype int8 keeps its other matrices and its cache in, and
            computes in as far as the target does so (`backend.compute_dtype`); empty: the target's
            own default.
        window: Prefill window P.
        context: KV cache positions C.
        batch: Prompts that decode takes at once, each with a cache of its own.
        tensor_parallel: Ranks; their programs are lowered one by one, and meet in the fused
            operators of `compiler.contracts.tensor_parallel`.
        align_qkv: Whether several ranks may hold one key and value head, where there are fewer
            heads than ranks (`frontend.model_kwargs.align_qkv`).
        compile: `backend.compile`, the target's own options.
        places: Option path (`backend.compile.threads`) -> `file:line:column`, for errors.
    """

    dtype: str
    window: int
    context: int
    batch: int = 1
    tensor_parallel: int = 1
    align_qkv: bool = False
    compute_dtype: str = ""
    compile: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])
    places: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class PassChoice:
    """A pass by name, and its options."""

    name: str
    options: Mapping[str, OptionValue] = field(default_factory=dict[str, OptionValue])


@dataclass(frozen=True)
class ProgramModel:
    """Both phases of a model at any point of the pipeline, and the checkpoint of its weights."""

    programs: ProgramSet
    checkpoint: CheckpointRef


@dataclass(frozen=True)
class Lowered:
    """What `Target.lower` wrote: the parameters that the module takes, in order, and its facts."""

    params: tuple[str, ...]
    facts: Mapping[str, object]


class Runner(ABC):
    """One opened model with a KV cache; tokens in, the next token's logits out.

    Attributes:
        vocabulary: Number of logits.
        context: Positions that the cache holds.
        length: Positions filled so far.
        layers: Decoder layers.
        slots: Prompts that are held at once, each in a cache of its own.
        slot: The one that everything speaks of but `extend_each`.
    """

    vocabulary: int
    context: int
    length: int = 0
    layers: int = 0
    slots: int = 1
    slot: int = 0

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append one or more tokens; the logits after the last of them, float32 [vocabulary].

        Raises:
            RunError: A token is outside the vocabulary, there are none, or the context is full.
        """

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Append tokens; the logits after each of them, float32 [vocabulary], one after the other.

        The runner runs as the rows are taken: take them all before it is used again or closed. Rows
        share their memory with others: whoever keeps a row keeps what was computed with it.

        Raises:
            RunError: As `extend`, when the first row is taken.
        """
        self.check_tokens(tokens)
        for token in tokens:
            yield self.extend([token])

    def use_slot(self, slot: int) -> None:
        """Speak of another prompt from here on; each keeps its own length."""
        assert 0 <= slot < self.slots, f"slot {slot} of {self.slots}"
        assert self.slots == 1, f"{type(self).__name__} has slots, and no use_slot"

    def extend_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Append one token to each of several prompts; what each gets as from `extend`.

        Args:
            tokens: By slot; prompts that are not named stay as they are.

        Raises:
            RunError: As `extend`, before any prompt has changed.
        """
        found: dict[int, np.ndarray] = {}
        for slot, token in tokens.items():
            self.use_slot(slot)
            found[slot] = self.extend([token])
        return found

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on; 0 starts over."""
        assert 0 <= length <= self.length, f"rewind to {length} of {self.length}"
        self.length = length

    def observe(self, observer: Observer | None) -> None:
        """Show `observer` the taps of every call from here on; None ends it.

        Taps come in the order of computation, those that the runner holds, and no others. Watching
        must not change what is computed: no rebuild, no other kernels.

        Raises:
            TargetError: This runner shows nothing but logits.
        """
        del observer
        raise TargetError(
            f"{type(self).__name__} shows no taps", hint="compare with --level end-to-end"
        )

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of positions [start, stop) of a layer, rotated, as attention reads them.

        Returns:
            Two float32 arrays [stop - start, kv_heads * head_dim], copies.

        Raises:
            TargetError: This runner shows nothing but logits, or its cache ends before `stop`.
        """
        del layer, start, stop
        raise TargetError(f"{type(self).__name__} does not show its cache")

    def close(self) -> None:  # noqa: B027 - nothing to release is a proper default
        """Release what the runner holds."""

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse an empty call, ids outside the vocabulary, and what the context cannot hold."""
        if not tokens:
            raise RunError("no tokens were given", hint="give at least one token")
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise RunError(f"token id {token} is outside the vocabulary of {self.vocabulary}")
        if self.length + len(tokens) > self.context:
            raise RunError(
                f"{self.length + len(tokens)} tokens do not fit the context of {self.context}",
                hint="shorten the prompt, or build with a longer frontend.shape.input_ids[1]",
                code="context-full",
            )


class WindowedRunner(Runner):
    """A runner over a bundle's two graphs: prompts in windows of P, single tokens by decode.

    A target implements `step`; windows, padding and the context check are done here, once.

    Attributes:
        window: Tokens of a prefill call, P.
        has_decode: Whether there is a decode graph.
        takes_padding: Whether the prefill graph gives the logits of the last real token; where it
            gives the last row's, what does not fill a window is read token by token.
    """

    window: int
    has_decode: bool = True
    takes_padding: bool = True
    has_every_row: bool = False
    _lengths: Mapping[int, int] = MappingProxyType({})

    @abstractmethod
    def step(self, phase: Phase, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """Run one graph.

        Args:
            phase: Which graph; never decode where there are several slots.
            tokens: int64 [1, P] right-padded with zeros (prefill) or [1, 1] (decode).
            past: Cache positions that hold earlier tokens; past + valid <= context.
            valid: How many of `tokens` are real; only their rows enter the cache.

        Returns:
            float32 [vocabulary], the logits after token `valid - 1`.
        """

    def step_rows(self, tokens: np.ndarray, *, past: int, valid: int) -> np.ndarray:
        """Run the prefill graph where it gives every row; float32 [valid, vocabulary].

        A target that sets `has_every_row` implements it; the arguments are those of `step`.
        """
        raise NotImplementedError(f"{type(self).__name__} has_every_row, and no step_rows")

    def step_slots(self, tokens: np.ndarray, *, past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Run the decode graph of several prompts; a target that sets `slots` implements it.

        Args:
            tokens: int64 [1, slots].
            past: int64 [slots]: positions that each prompt's cache holds.
            valid: int64 [slots]: 1, or 0 for a prompt that takes no part: its cache stays as it is.

        Returns:
            float32 [slots, vocabulary]; rows of prompts that take no part mean nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} has slots, and no step_slots")

    def use_slot(self, slot: int) -> None:
        """The other prompts' lengths are kept."""
        assert 0 <= slot < self.slots, f"slot {slot} of {self.slots}"
        self._lengths = {**self._lengths, self.slot: self.length}
        self.slot, self.length = slot, self._lengths.get(slot, 0)

    def extend_each(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """One call of the decode graph, where it takes several prompts."""
        if self.slots == 1:
            return super().extend_each(tokens)
        chosen = self.slot
        try:
            for slot, token in tokens.items():
                self.use_slot(slot)
                self.check_tokens([token])
            rows = self._step_slots(tokens)
            for slot in tokens:
                self.use_slot(slot)
                self.length += 1
        finally:
            self.use_slot(chosen)
        return rows

    def _step_slots(self, tokens: Mapping[int, int]) -> Mapping[int, np.ndarray]:
        """Arrays for `step_slots`; what takes no part has no past either."""
        lengths = {**self._lengths, self.slot: self.length}
        ids = np.zeros((1, self.slots), np.int64)
        past, valid = np.zeros(self.slots, np.int64), np.zeros(self.slots, np.int64)
        for slot, token in tokens.items():
            ids[0, slot], past[slot], valid[slot] = token, lengths.get(slot, 0), 1
        logits = self.step_slots(ids, past=past, valid=valid)
        return {slot: logits[slot] for slot in tokens}

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """A window at a time where the prefill graph gives every row."""
        if not self.has_every_row:
            yield from super().read_rows(tokens)
            return
        self.check_tokens(tokens)
        for start in range(0, len(tokens), self.window):
            chunk = tokens[start : start + self.window]
            ids = _padded(chunk, self.window)
            rows = self.step_rows(ids, past=self.length, valid=len(chunk))
            self.length += len(chunk)
            yield from rows

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Windows of P for several tokens, the decode graph for one."""
        self.check_tokens(tokens)
        if not self.takes_padding and not self.has_decode and len(tokens) % self.window:
            raise RunError(
                f"{len(tokens)} tokens do not fill windows of {self.window}, and the bundle gives "
                "the logits of a window's last row",
                hint="build with insert-strided-slice: {position: last_valid}, or with a context",
            )
        logits = np.empty(0, np.float32)
        start = 0
        while start < len(tokens):
            chunk = tokens[start : start + self.window]
            if len(chunk) < self.window and not self.takes_padding:
                chunk = chunk[:1]
            phase: Phase = "decode" if len(chunk) == 1 and self.has_decode else "prefill"
            if phase == "decode" and self.slots > 1:
                logits = self._step_slots({self.slot: chunk[0]})[self.slot]
            else:
                ids = _padded(chunk, 1 if phase == "decode" else self.window)
                logits = self.step(phase, ids, past=self.length, valid=len(chunk))
            self.length += len(chunk)
            start += len(chunk)
        return logits


def _padded(tokens: Sequence[int], width: int) -> np.ndarray:
    """int64 [1, width], zeros on the right."""
    ids = np.zeros((1, width), np.int64)
    ids[0, : len(tokens)] = tokens
    return ids


class Target(ABC):
    """One backend. Stateless; made anew for each build."""

    name: ClassVar[str]
    # What `open` takes: "checkpoint", "program" or "bundle".
    opens: ClassVar[str]
    # What may follow the name in a comparison, besides nothing: `torch@bf16`. For a target that
    # opens programs the word after the @ is a pass, the last that has run.
    variants: ClassVar[tuple[str, ...]] = ()
    # Whether it lowers a rank's program, AllReduce and AllGather included, and runs several.
    has_ranks: ClassVar[bool] = False
    # Whether its decode takes several prompts at once, and its runner has a slot for each.
    has_slots: ClassVar[bool] = False

    @abstractmethod
    def probe(self) -> Probe:
        """What can be done here, and what is missing."""

    def constraints(
        self, options: TargetOptions, config: Mapping[str, object]
    ) -> list[CompilerError]:
        """Every violation at once, from the options and the model's config.json alone.

        A target that builds bundles says what it asks of them; this one builds none.
        """
        del options, config
        return [
            TargetError(
                f"target '{self.name}' runs models, it does not build bundles",
                hint="compare with it: python -m compiler compare model.yaml "
                f"--targets {self.name},NAME",
            )
        ]

    def passes(self, options: TargetOptions) -> tuple[PassChoice, ...]:
        """The passes that it adds after the YAML's, by the registry's names."""
        del options
        return ()

    def fingerprint(self, options: TargetOptions) -> Mapping[str, object]:
        """What else decides its output (the CPU it found), in JSON; part of a bundle's digest."""
        del options
        return {}

    def unsupported(self, program: Program) -> tuple[Skip, ...]:
        """Nodes that it cannot lower, each with the reason."""
        del program
        return ()

    def lower(self, program: Program, options: TargetOptions, folder: Path) -> Lowered:
        """Compile one program into files in `folder`, deterministically.

        Raises:
            TargetError: This target lowers nothing.
        """
        del program, options, folder
        raise TargetError(f"target '{self.name}' runs models, it does not build bundles")

    @abstractmethod
    def open(
        self,
        model: CheckpointRef | ProgramModel | Bundle,
        *,
        threads: int | None = None,
        variant: str = "",
    ) -> Runner:
        """Open what `opens` says for running.

        Args:
            model: Of the kind that `opens` names.
            threads: To compute with; None leaves it to the target.
            variant: One of `variants`; empty for the plain target.

        Raises:
            MachineLacks: The machine lacks what the model needs.
            TargetError: The model is of another kind than this target opens.
        """

    def open_lowered(self, model: ProgramModel, options: TargetOptions) -> Runner | None:
        """Open programs as this target's compiler reads them, before what it makes of them.

        A ladder tells by it the import's error from that of the target's own kernels.

        Args:
            model: After all passes, as `lower` gets its programs.
            options: As `lower` gets them.

        Returns:
            None: there is no such point that could run here.

        Raises:
            TargetError: The programs cannot be lowered.
        """
        del model, options
        return None
