import numpy as np

from compiler.contracts.bundle import PARAMS_FOLDER, Bundle
from compiler.contracts.errors import CompilerError, ConfigError, TargetError
from compiler.contracts.target_base import Lowered, Probe, Target, WindowedRunner


class ExampleTarget(Target):
    name = "example"
    opens = "bundle"

    def probe(self):
        return Probe(can_build=True, can_run=True)

    def constraints(self, options, config) -> list[CompilerError]:
        places = options.places
        wrong = {f"backend.compile.{key}": "is unknown" for key in options.compile}
        if options.dtype != "fp32":
            wrong["backend.dtype"] = "is not fp32"
        return [ConfigError(f"{key} {said}", where=places.get(key)) for key, said in wrong.items()]

    def lower(self, program, options, folder):
        (folder / "model.onnx").write_bytes(program.model().SerializeToString(deterministic=True))
        params = program.parameters()
        return Lowered(params=params, facts={})

    def open(self, model, *, threads=None, variant=""):
        if not isinstance(model, Bundle):
            raise TargetError(f"'{self.name}' opens bundles, not {type(model).__name__}")
        return ExampleRunner(model)


class ExampleRunner(WindowedRunner):
    def __init__(self, bundle):
        from onnxruntime import InferenceSession
        from safetensors.numpy import load_file

        stored = load_file(bundle.path / PARAMS_FOLDER / "rank0.safetensors")
        known = bundle.manifest
        self.window, self.context, self.vocabulary = known.window, known.context, known.vocabulary
        self.entries = {entry.phase: entry for entry in known.modules}
        self.has_decode = "decode" in self.entries
        self.params, self.sessions, self.caches = {}, {}, {}
        for phase, entry in self.entries.items():
            model = bundle.path / entry.folder / "model.onnx"
            self.sessions[phase] = InferenceSession(model, providers=["CPUExecutionProvider"])
            self.params[phase] = {name: stored[entry.stored[name]] for name in entry.params}
            shapes = {spec.name: spec.shape for spec in entry.inputs}
            self.caches |= {n: np.zeros(shapes[n], np.float32) for n in entry.aliases.values()}

    def step(self, phase, tokens, *, past, valid):
        entry = self.entries[phase]
        lengths = {"past_length": np.array([past]), "valid_length": np.array([valid])}
        given = {"input_ids": tokens, **lengths, **self.caches}
        feeds = {spec.name: given[spec.name] for spec in entry.inputs} | self.params[phase]
        found = self.sessions[phase].run(None, feeds)
        outputs = dict(zip([spec.name for spec in entry.outputs], found, strict=True))
        self.caches = {cache: outputs[name] for name, cache in entry.aliases.items()}
        return outputs["logits"].reshape(-1, self.vocabulary)[-1]
