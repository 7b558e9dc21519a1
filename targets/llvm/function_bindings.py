"""What is bound in a Relax function, and who reads it: looked at before anything is rewritten."""

from collections.abc import Iterator

import tvm
from tvm import relax


class Bindings:
    """The bindings of a function without branches, in order."""

    def __init__(self, function: relax.Function) -> None:
        body = function.body
        assert isinstance(body, relax.SeqExpr), "a function's body is a sequence"
        self._values: dict[relax.Var, relax.Expr] = {}
        self._readers: dict[relax.Var, list[relax.Var]] = {}
        for block in body.blocks:
            for binding in block.bindings:
                assert isinstance(binding, relax.VarBinding), "no value is matched with a shape"
                self._values[binding.var] = binding.value
                for read in _read(binding.value):
                    self._readers.setdefault(read, []).append(binding.var)
        for read in _read(body.body):
            self._readers.setdefault(read, []).append(read)

    def __iter__(self) -> Iterator[tuple[relax.Var, relax.Expr]]:
        return iter(self._values.items())

    def value(self, variable: relax.Var) -> relax.Expr | None:
        """What it is bound to; None for a parameter."""
        return self._values.get(variable)

    def behind(self, value: relax.Expr) -> relax.Expr | None:
        """What a variable stands for, and what that one does; None for a parameter."""
        while isinstance(value, relax.Var):
            found = self.value(value)
            if found is None:
                return None
            value = found
        return value

    def only_reader(self, variable: relax.Var) -> relax.Var | None:
        """The variable whose value reads it, where there is just one."""
        readers = self._readers.get(variable, [])
        if len(readers) != 1 or readers[0] is variable:
            return None
        return readers[0]

    def original(self, variable: relax.Var) -> relax.Var:
        """The variable that this one is another name of."""
        while isinstance(behind := self.value(variable), relax.Var):
            variable = behind
        return variable


def _read(value: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []

    def note(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Var):
            found.append(expr)

    relax.analysis.post_order_visit(value, note)
    return found


def only_main(module: tvm.IRModule) -> relax.Function:
    """The Relax function of a module: what a program became."""
    main = module["main"]
    assert isinstance(main, relax.Function)
    return main
