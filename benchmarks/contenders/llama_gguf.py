"""llama.cpp through llama-cpp-python's bindings, on a GGUF file that the `gguf` package writes."""

import ctypes
import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from benchmarks.contenders.base import Contender
from benchmarks.optional import optional

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_KINDS = {"fp32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_1": "Q4_1"}


class LlamaGguf(Contender):
    """Its own kernels, compiled for this machine; the cache is in 16 bits, as it comes."""

    modules: ClassVar = ("llama_cpp", "gguf")
    install: ClassVar = (
        "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python (needs cmake and a C++ compiler)"
    )
    dtypes: ClassVar = {"fp32": "fp32", "bf16": "bf16", "q8_0": "int8", "q4_1": "int4"}

    def make(self) -> None:
        """Matrices in the dtype, norms and biases in float32, no tokenizer."""
        import gguf
        from gguf.quants import quantize

        from compiler.checkpoints.safetensors_header import tensors_in

        if (self.job.folder / "complete").is_file():
            return
        self.job.folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((self.job.checkpoint / "config.json").read_text(encoding="utf-8"))
        writer = gguf.GGUFWriter(self.job.folder / "model.gguf", "qwen2")
        writer.add_context_length(self.job.context)
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(_theta(config))
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("no_vocab")
        kind = gguf.GGMLQuantizationType[_KINDS[self.job.dtype]]
        for name, tensor in tensors_in(self.job.checkpoint / "model.safetensors").items():
            values = tensor.rows(0, tensor.shape[0]).astype(np.float32)
            stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(_gguf_name(name), quantize(values, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (self.job.folder / "complete").touch()

    def load(self) -> None:
        """Prompts whole; as many threads for prompts as for tokens."""
        llama_cpp = optional("llama_cpp")
        self._library = llama_cpp
        llama_cpp.llama_backend_init()
        path = str(self.job.folder / "model.gguf").encode()
        model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        assert model is not None, "llama.cpp refuses the file; its log says why"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.job.context
        params.n_batch = self.job.context
        params.n_threads = params.n_threads_batch = self.job.threads
        context = llama_cpp.llama_init_from_model(model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        assert context is not None, "llama.cpp makes no context; its log says why"
        assert vocabulary is not None, "the file names the size of its vocabulary"
        memory = llama_cpp.llama_get_memory(context)
        assert memory is not None, "a model of this kind has a cache"
        self._context, self._memory = context, memory
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def prefill(self, tokens: Sequence[int]) -> int:
        """From a cleared memory."""
        self._library.llama_memory_clear(self._memory, False)
        return self._run(tokens)

    def step(self, token: int) -> int:
        """At the position that follows."""
        return self._run([token])

    def _run(self, tokens: Sequence[int]) -> int:
        library = self._library
        array = (library.llama_token * len(tokens))(*tokens)
        status = library.llama_decode(
            self._context, library.llama_batch_get_one(array, len(tokens))
        )
        assert status == 0, f"llama_decode gives {status}"
        found = library.llama_get_logits_ith(self._context, -1)
        pointer = ctypes.cast(found, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(pointer, (self._vocabulary,)).argmax())


def _theta(config: dict[str, object]) -> float:
    theta = config.get("rope_theta")
    if theta is None:
        parameters = config["rope_parameters"]
        assert isinstance(parameters, dict), "the base stands in either place"
        theta = parameters["rope_theta"]
    assert isinstance(theta, int | float), "the base is a number"
    return float(theta)


def _gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.bias` -> `blk.3.attn_q.bias`."""
    module, _, kind = name.rpartition(".")
    if module in _OTHER_NAMES:
        return f"{_OTHER_NAMES[module]}.{kind}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"
