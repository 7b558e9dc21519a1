"""The example target with one fault each, that a check of the suite must name."""

import os
from pathlib import Path

import numpy as np
from graphlower_example import ExampleRunner, ExampleTarget

from compiler.contracts.errors import TargetError
from compiler.contracts.taps import Tap


class Opening(ExampleTarget):
    """A target whose bundles are opened by another runner."""

    runner = ExampleRunner

    def open(self, model, *, threads=None, variant=""):
        return self.runner(model)


class WithoutBias(ExampleRunner):
    def __init__(self, bundle):
        super().__init__(bundle)
        for params in self.params.values():
            params.update({n: np.zeros_like(a) for n, a in params.items() if "bias" in n})


class SeesPadding(ExampleRunner):
    def step(self, phase, tokens, *, past, valid):
        return super().step(phase, tokens, past=past, valid=min(tokens.shape[1], 48 - past))


class StaleAfterRewind(ExampleRunner):
    stale = 0

    def rewind(self, length):
        self.stale = 1 if length else 0
        super().rewind(length)

    def step(self, phase, tokens, *, past, valid):
        return super().step(phase, tokens, past=past - self.stale, valid=valid)


class ChangedByWatching(ExampleRunner):
    observer = None
    point = "logits"

    def observe(self, observer):
        self.observer = observer

    def step(self, phase, tokens, *, past, valid):
        logits = super().step(phase, tokens, past=past, valid=valid)
        if self.observer is None:
            return logits
        self.observer.see(Tap(None, self.point), logits[None])
        return logits + np.float32(1e-6) if self.point == "logits" else logits


class OtherNames(ChangedByWatching):
    point = "scores"


class Unchecked(ExampleRunner):
    def check_tokens(self, tokens):
        del tokens


class OfThisProcess(ExampleRunner):
    def step(self, phase, tokens, *, past, valid):
        shift = np.float32(os.getpid() * 1e-4)
        return super().step(phase, tokens, past=past, valid=valid) + shift


class Undetermined(ExampleTarget):
    name = "undetermined"

    def lower(self, program, options, folder: Path):
        (folder / "stamp").write_bytes(os.urandom(8))
        return super().lower(program, options, folder)


class AcceptsOptions(ExampleTarget):
    name = "accepts-options"

    def constraints(self, options, config):
        return [one for one in super().constraints(options, config) if "unknown" not in str(one)]


class OneAtATime(ExampleTarget):
    name = "one-at-a-time"

    def constraints(self, options, config):
        return super().constraints(options, config)[:1]


class AcceptsDtypes(ExampleTarget):
    name = "accepts-dtypes"

    def constraints(self, options, config):
        if options.dtype == "int7":
            return super().constraints(options, config)
        return [one for one in super().constraints(options, config) if "fp32" not in str(one)]

    def lower(self, program, options, folder):
        if options.dtype != "fp32":
            raise TargetError(f"there are no kernels for {options.dtype}")
        return super().lower(program, options, folder)


class Raising(ExampleTarget):
    name = "raising"

    def constraints(self, options, config):
        return [config["no such key"]]


class WithoutBiasTarget(Opening):
    name = "without-bias"
    runner = WithoutBias


class SeesPaddingTarget(Opening):
    name = "sees-padding"
    runner = SeesPadding


class StaleAfterRewindTarget(Opening):
    name = "stale-after-rewind"
    runner = StaleAfterRewind


class ChangedByWatchingTarget(Opening):
    name = "changed-by-watching"
    runner = ChangedByWatching


class OtherNamesTarget(Opening):
    name = "other-names"
    runner = OtherNames


class UncheckedTarget(Opening):
    name = "unchecked"
    runner = Unchecked


class OfThisProcessTarget(Opening):
    name = "of-this-process"
    runner = OfThisProcess
