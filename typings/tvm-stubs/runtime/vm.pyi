"""TVM annotates the device as a class of its own and takes tvm_ffi's, which `tvm.cpu()` is."""

from collections.abc import Sequence
from typing import Any

from tvm.runtime import Executable, Module
from tvm_ffi import Device

class VirtualMachine:
    def __init__(self, rt_mod: Module | Executable, device: Device | Sequence[Device]) -> None: ...
    def __getitem__(self, key: str) -> Any: ...
