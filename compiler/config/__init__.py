"""The declared format, parsed once into typed, frozen sections with a place for every value."""

from compiler.config.build_config import BuildConfig, load_config
from compiler.config.compare_section import CompareLimits
from compiler.config.pass_list import (
    DEFAULT_PASSES,
    EXPORTED_PASSES,
    FOLD_PASS,
    SHARD_PASS,
    PassOption,
    PassSpec,
    build_passes,
)
from compiler.config.pass_section import NamedPass, PassSection
from compiler.config.section_values import Dtype
from compiler.config.sections import Verify

__all__ = [
    "DEFAULT_PASSES",
    "EXPORTED_PASSES",
    "FOLD_PASS",
    "SHARD_PASS",
    "BuildConfig",
    "CompareLimits",
    "Dtype",
    "NamedPass",
    "PassOption",
    "PassSection",
    "PassSpec",
    "Verify",
    "build_passes",
    "load_config",
]
