"""YAML text -> a plain tree in which every node remembers its place, for errors with file and line.

The two lines `backend:` and `  dtype: fp32` give `data == {"backend": {"dtype": "fp32"}}` and
`place(("backend", "dtype")) == "model.yaml:2:10"`.
"""

from compiler.yaml_source.overrides import apply_overrides, override_value
from compiler.yaml_source.reading import MAX_BYTES, MAX_VALUES, load_yaml
from compiler.yaml_source.source import Mark, Source, YamlPath, YamlValue

__all__ = [
    "MAX_BYTES",
    "MAX_VALUES",
    "Mark",
    "Source",
    "YamlPath",
    "YamlValue",
    "apply_overrides",
    "load_yaml",
    "override_value",
]
