"""What the YAML's `evaluate` asks of a bundle before it is put in place, and what it found.

The figures are kept in `<workspace>/<name>.evaluation.json`. A bundle that stands there already is
measured again only where they are missing, or of another bundle or text.
"""

from dataclasses import dataclass, field
from pathlib import Path

from compiler.config import BuildConfig
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CheckFailed
from compiler.contracts.evaluation import Evaluation
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.evaluation_file import read_evaluation, write_evaluation
from compiler.stages.import_onnx import onnx_file
from compiler.workflows.comparing.inputs import digest_of
from compiler.workflows.evaluate import evaluate_bundle
from compiler.workflows.float_model import FloatModel


@dataclass
class Approval:
    """One build's; without the section it asks nothing and finds nothing.

    Attributes:
        config: The build.
        checkpoint: What the bundle is built from.
        tokens: Of the text; None without the section.
        progress: Told of the evaluation.
    """

    config: BuildConfig
    checkpoint: CheckpointRef
    tokens: tuple[int, ...] | None
    progress: Progress
    _found: Evaluation | None = field(default=None, init=False)

    @property
    def file(self) -> Path:
        """Where the figures are kept."""
        return self.config.workspace_path / f"{self.config.name}.evaluation.json"

    def approve(self, bundle: Bundle) -> None:
        """Measure a bundle.

        Raises:
            CheckFailed: Its perplexity is over the limit.
        """
        if self.tokens is not None:
            self._found = self._within_limit(self._measured(bundle, self.tokens))

    def of_placed(self, bundle: Bundle) -> Evaluation | None:
        """The figures of a bundle that is in place, which are then on disk, too.

        Raises:
            CheckFailed: It stood there already, and is over the limit.
        """
        if self.tokens is None:
            return None
        kept = read_evaluation(self.file)
        known = (bundle.manifest.digest, digest_of([self.tokens]))
        if self._found is None and kept is not None and (kept.bundle, kept.inputs) == known:
            return self._within_limit(kept)
        if self._found is None:
            self.approve(bundle)
        assert self._found is not None, "approved"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_evaluation(self.file, self._found)
        return self._found

    def _measured(self, bundle: Bundle, tokens: tuple[int, ...]) -> Evaluation:
        file = None
        if self.config.frontend.type == "onnx":
            file = onnx_file(self.config.checkpoint, self.config.path.absolute().parent)
        model = FloatModel(self.checkpoint, file)
        return evaluate_bundle(bundle, tokens, model=model, progress=self.progress)

    def _within_limit(self, found: Evaluation) -> Evaluation:
        assert self.config.evaluate is not None, "there are tokens"
        limit, key = (
            self.config.evaluate.max_perplexity_increase,
            "evaluate.max_perplexity_increase",
        )
        if limit is None:
            return found
        place = self.config.place(key)
        if found.reference is None:
            message = f"there is nothing to hold the perplexity against: {found.note}"
            raise CheckFailed(message, where=place, hint="leave the limit out")
        figures = found.reference
        if figures.perplexity_increase <= limit:
            return found
        raise CheckFailed(
            f"the perplexity is {figures.perplexity_increase:.4g} over the float model's, "
            f"the limit is {limit:g}: from {figures.perplexity:.6g} to {found.perplexity:.6g} on "
            f"{found.tokens} tokens, mean divergence {figures.mean_kl:.4g} nats",
            where=place,
            hint="quantize fewer modules, or with more bits, or allow more",
        )
