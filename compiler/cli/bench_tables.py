"""The figures of `bench` as tables."""

from typing import TYPE_CHECKING

from compiler.terminal import Terminal, megabytes

if TYPE_CHECKING:
    from compiler.workflows.bench import BenchResult, Figure, LengthFigures, PhaseProfile

_UNDER_LOAD = "under load"
# Of a fused kernel's name; `--json` has all of it.
_NAME_WIDTH = 40
# Kernels that take less of a call are shown together.
_LEAST_SHARE = 0.001


def print_bench(found: "BenchResult", terminal: Terminal) -> None:
    """What was measured once, then a row for each prompt, then the kernels."""
    mark = "" if found.bandwidth_is_clean else f", {_UNDER_LOAD}"
    read = f"{found.read_bandwidth / 1e9:.1f} GB/s with {found.threads} threads{mark}"
    terminal.table(
        ("", ""),
        [
            ("bundle", f"{found.name}, {found.target}"),
            ("window, context", f"{found.window}, {found.context}"),
            ("peak memory", f"{found.peak_resident_bytes / 1e9:.2f} GB"),
            ("memory read, measured here", read),
        ],
        is_text=True,
    )
    terminal.line("")
    headers = (
        "prompt",
        "prefill ms",
        "decode ms",
        "tokens/s",
        "read a token",
        "floor ms",
        "over floor",
        "load of others",
    )
    terminal.table(headers, [_length_row(one) for one in found.lengths])
    for profile in found.profiles:
        _print_profile(profile, terminal)


def _length_row(one: "LengthFigures") -> tuple[str, ...]:
    figures = [one.prefill] if one.decode is None else [one.prefill, one.decode]
    head = (str(one.prompt_tokens), f"{one.prefill.ms:.4g}")
    if one.decode is None or one.bytes_per_token is None:
        return (*head, *("-" for _ in range(5)), _load(figures))
    return (
        *head,
        f"{one.decode.ms:.4g}",
        f"{one.decode_tokens_per_second:.1f}",
        megabytes(one.bytes_per_token),
        f"{one.floor_ms:.4g}",
        f"{one.over_floor:.2f}",
        _load(figures),
    )


def _load(figures: "list[Figure]") -> str:
    """The highest, in cores, and whether it is too high."""
    load = f"{max(figure.others for figure in figures):.2f}"
    return load if all(figure.is_clean for figure in figures) else f"{load}, {_UNDER_LOAD}"


def _print_profile(profile: "PhaseProfile", terminal: Terminal) -> None:
    what = "a prompt of" if profile.phase == "prefill" else "a token after"
    mark = "" if profile.is_clean else f", {_UNDER_LOAD}"
    terminal.line("")
    terminal.line(
        f"{profile.phase}: {what} {profile.prompt_tokens} tokens, {profile.ms:.4g} ms "
        f"({profile.watched_ms:.4g} ms while its kernels were timed{mark})"
    )
    rows = [
        (
            _short(one.name),
            one.shape,
            str(one.calls),
            f"{one.ms:.4g}",
            f"{one.share:.1%}",
            megabytes(one.moved_bytes),
            f"{one.floor_ms:.3g}",
            "-" if one.over_floor is None else f"{one.over_floor:.2f}",
        )
        for one in profile.kernels
        if one.share >= _LEAST_SHARE
    ]
    rest = [one for one in profile.kernels if one.share < _LEAST_SHARE]
    if rest:
        calls, ms = sum(one.calls for one in rest), sum(one.ms for one in rest)
        share = f"{ms / profile.ms:.1%}"
        rows.append((f"{len(rest)} others", "", str(calls), f"{ms:.4g}", share, "", "", ""))
    machine = profile.virtual_machine_ms
    share = f"{machine / profile.ms:.1%}"
    rows.append(("virtual machine", "", "", f"{machine:.4g}", share, "", "", ""))
    headers = ("kernel", "on", "calls", "ms", "share", "moves", "floor ms", "over floor")
    terminal.table(headers, rows)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 3]}..."
