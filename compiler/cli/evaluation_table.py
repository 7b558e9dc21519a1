"""An evaluation as lines, of `evaluate` and of `build`."""

from compiler.contracts.evaluation import Evaluation
from compiler.terminal import Terminal


def print_evaluation(found: Evaluation, terminal: Terminal) -> None:
    """Name and figure, a line each."""
    figures = found.reference
    rows = [("tokens", str(found.tokens)), ("perplexity", f"{found.perplexity:.6g}")]
    if figures is not None:
        near = f", {figures.near_ties} near-ties left out" if figures.near_ties else ""
        rows += [
            (f"perplexity of {figures.name}", f"{figures.perplexity:.6g}"),
            ("increase", f"{figures.perplexity_increase:+.3%}"),
            ("mean divergence", f"{figures.mean_kl:.4g} nats"),
            ("largest divergence", f"{figures.max_kl:.4g} nats"),
            ("first tokens that agree", f"{figures.top1_agreement:.2%}{near}"),
        ]
    terminal.table(("", ""), rows, is_text=True)
    if found.note:
        terminal.note(found.note)
