"""Which values of a graph have a row for each token of a window, and how many of those are real."""

from dataclasses import dataclass

from tvm import relax

from targets.llvm.kernel_calls import static_shape

_TOKENS, _VALID = "input_ids", "valid_length"


@dataclass(frozen=True)
class RowLimit:
    """Of a window that may be padded; of any other graph, no rows.

    Attributes:
        rows: Tokens of the window; 0 where none of it is padding.
        valid: The parameter int64 [1] that says how many are real.
    """

    rows: int = 0
    valid: relax.Var | None = None

    def of(self, rows: int) -> list[relax.Expr]:
        """The argument of a kernel over so many rows: where they are the window's, `valid`."""
        return [self.valid] if self.valid is not None and rows == self.rows else []


def row_limit(main: relax.Function) -> RowLimit:
    """Read it off the parameters: one prompt with its window, padded behind `valid_length`."""
    named = {parameter.name: parameter for parameter in main.params}
    tokens, valid = named.get(_TOKENS), named.get(_VALID)
    if tokens is None or valid is None or static_shape(valid) != (1,):
        return RowLimit()
    _, rows = static_shape(tokens)
    return RowLimit(rows, valid) if rows > 1 else RowLimit()
