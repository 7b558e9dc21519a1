"""Temporaries of one type that do not live at the same time share memory."""

from collections.abc import Sequence
from dataclasses import replace

from targets.vacc.tile_program import Meet, Step, Tensor, View


def share_memory(
    tensors: Sequence[Tensor], steps: Sequence[Step], results: Sequence[str]
) -> tuple[tuple[Tensor, ...], tuple[Step, ...], tuple[str, ...]]:
    """The same program on fewer tensors: a result takes the place of one that is read no more.

    Args:
        tensors: One for each result; what is not among them is an argument, and stays.
        steps: In order.
        results: What is read after the last.
    """
    own = {tensor.name: tensor for tensor in tensors}
    roots = _roots(steps)
    last = {roots.get(name, name): len(steps) for name in results}
    for index in reversed(range(len(steps))):
        for name in _read(steps[index]):
            last.setdefault(roots.get(name, name), index)
    free: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    places: dict[str, str] = {}
    kept: list[Tensor] = []
    for index, step in enumerate(steps):
        for name in () if isinstance(step, View) else step.results:
            if name not in own or name in places:
                continue
            kind = (own[name].dtype, own[name].shape)
            if free.get(kind):
                places[name] = free[kind].pop()
                continue
            places[name] = f"t{len(kept)}"
            kept.append(replace(own[name], name=places[name]))
        ended = {name for name, end in last.items() if end == index and name in places}
        for name in sorted(ended):
            free.setdefault((own[name].dtype, own[name].shape), []).append(places[name])
    # A view is named after the step that makes it: it is no memory of its own.
    return (
        tuple(kept),
        tuple(_renamed(step, places) for step in steps),
        tuple(places.get(name, name) for name in results),
    )


def _roots(steps: Sequence[Step]) -> dict[str, str]:
    """View -> the tensor whose bytes it is."""
    roots: dict[str, str] = {}
    for step in steps:
        if isinstance(step, View):
            roots[step.name] = roots.get(step.source, step.source)
    return roots


def _read(step: Step) -> tuple[str, ...]:
    # A result that nothing reads ends where it was made.
    return (step.source,) if isinstance(step, View) else (*step.arguments, *step.results)


def _renamed(step: Step, places: dict[str, str]) -> Step:
    if isinstance(step, View):
        return replace(step, source=places.get(step.source, step.source))
    if isinstance(step, Meet):
        argument, result = (places.get(name, name) for name in (step.argument, step.result))
        return replace(step, argument=argument, result=result)
    return replace(
        step,
        arguments=tuple(places.get(name, name) for name in step.arguments),
        results=tuple(places.get(name, name) for name in step.results),
    )
