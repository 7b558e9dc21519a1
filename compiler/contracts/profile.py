"""Where the time of a call goes: what a runner says that can tell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelTime:
    """The calls of one kernel on weights of one shape.

    Attributes:
        name: The kernel's.
        shape: Of its largest weight, or without one of its largest argument, and the dtype:
            `2816x1024 bfloat16`.
        calls: How often it was called.
        seconds: All calls together.
        moved_bytes: What all calls together must at least read and write, each tensor once a call.
    """

    name: str
    shape: str
    calls: int
    seconds: float
    moved_bytes: int


@dataclass(frozen=True)
class CallProfile:
    """Tokens appended once, kernel by kernel.

    Attributes:
        seconds: From the first kernel's start to the last one's end, watching included.
        kernels: The slowest first.
    """

    seconds: float
    kernels: tuple[KernelTime, ...]
