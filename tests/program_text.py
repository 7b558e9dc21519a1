"""What the passes' golden tests compare, and change: programs as text."""

from collections.abc import Callable, Mapping

from compiler.pass_kit import program_from_text, text_of

__all__ = ["Golden", "changed", "program_from_text", "text_of"]

# The fixture of that name: (file in `golden/`, text) -> an assertion that they are equal.
Golden = Callable[[str, str], None]


def changed(text: str, replaced: Mapping[str, str]) -> str:
    """`text` with each key replaced; a key that is not there is a mistake of the test."""
    for old, new in replaced.items():
        assert old in text, f"{old!r} is not in the text"
        text = text.replace(old, new)
    return text
