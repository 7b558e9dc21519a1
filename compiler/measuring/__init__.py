"""Speeds that mean something: blocks measured while the machine is quiet, their median, the floor.

One rival thread makes a run on all cores several times slower, because its barriers spin. So the
load of other processes is recorded with each block, and a block under load is measured again.
"""

from compiler.measuring.bandwidth import read_bandwidth
from compiler.measuring.blocks import Block, Blocks, Wanted, clean_blocks, repeated
from compiler.measuring.machine import QUIET_CORES, measured, others_seconds, peak_resident_bytes

__all__ = [
    "QUIET_CORES",
    "Block",
    "Blocks",
    "Wanted",
    "clean_blocks",
    "measured",
    "others_seconds",
    "peak_resident_bytes",
    "read_bandwidth",
    "repeated",
]
