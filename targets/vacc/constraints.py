"""What the device asks of a model, from its config.json and the options alone: all at once."""

from collections.abc import Mapping
from dataclasses import dataclass

from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.target_base import TargetOptions
from compiler.contracts.tensor_parallel import kv_repeats, sharding_violations
from targets.vacc.device import DTYPES, PROFILE_KEYS, DeviceProfile

# Options of the declared format that change nothing here; the bundle records them.
RECORDED_OPTIONS = ("data_type", "gather_data_vccl_dsp_enable")
OPTIONS = ("profile", "strict", "driver", *PROFILE_KEYS)
_GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """What a config.json says of a decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool

    @staticmethod
    def of(config: Mapping[str, object]) -> "Sizes | None":
        """None where the config does not have them as integers."""
        heads = _integer(config, "num_attention_heads")
        hidden = _integer(config, "hidden_size")
        values = {
            "hidden": hidden,
            "intermediate": _integer(config, "intermediate_size"),
            "layers": _integer(config, "num_hidden_layers"),
            "heads": heads,
            "kv_heads": _integer(config, "num_key_value_heads") or heads,
            "head_dim": _integer(config, "head_dim") or (hidden // heads if heads else 0),
            "vocabulary": _integer(config, "vocab_size"),
        }
        if not all(values.values()):
            return None
        return Sizes(**values, is_tied=config.get("tie_word_embeddings") is True)


def _integer(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def option_errors(options: TargetOptions, *, target: str) -> list[CompilerError]:
    """Unknown compile options, and values of another kind."""
    errors: list[CompilerError] = []
    for key, value in options.compile.items():
        place = options.places.get(f"backend.compile.{key}")
        if key not in (*OPTIONS, *RECORDED_OPTIONS):
            errors.append(
                ConfigError(
                    f"target '{target}' has no compile option '{key}'",
                    where=place,
                    hint=f"its options are {', '.join(OPTIONS)}",
                    code="unknown-key",
                )
            )
        elif key == "strict" and not isinstance(value, bool):
            errors.append(ConfigError(f"strict is {value!r}, expected true or false", where=place))
        elif key == "driver" and not isinstance(value, str):
            errors.append(ConfigError(f"driver is {value!r}, expected a name", where=place))
    return errors


def model_errors(
    options: TargetOptions, config: Mapping[str, object], profile: DeviceProfile
) -> list[CompilerError]:
    """What the model and the lengths break; that ranks divide it is asked of every target."""
    errors = [*_dtype_errors(options, profile), *_group_errors(options, profile.matrix_tile)]
    sizes = Sizes.of(config)
    if sizes is None:
        # Whoever reads the checkpoint says what its config.json lacks.
        return errors
    errors += _multiple_errors(options, sizes, profile.matrix_tile)
    undivided = sharding_violations(
        config, ways=options.tensor_parallel, align_qkv=options.align_qkv, places=options.places
    )
    if not undivided and options.dtype in DTYPES:
        errors += _memory_errors(options, sizes, profile)
    return errors


def _dtype_errors(options: TargetOptions, profile: DeviceProfile) -> list[CompilerError]:
    errors: list[CompilerError] = []
    if options.dtype not in profile.dtypes:
        errors.append(
            ConfigError(
                f"the device takes weights of {' and '.join(profile.dtypes)}, not {options.dtype}",
                where=options.places.get("backend.dtype") or options.places.get("backend.type"),
                hint="write `dtype: fp16`",
            )
        )
    if options.dtype == "int8" and options.compute_dtype not in ("", "fp16"):
        errors.append(
            ConfigError(
                f"the device computes int8 models in fp16, not {options.compute_dtype}",
                where=options.places.get("backend.dtype"),
                hint="leave out backend.compute_dtype",
            )
        )
    return errors


def _group_errors(options: TargetOptions, tile: int) -> list[CompilerError]:
    group = 0 if options.quantize is None else options.quantize.group_size
    if group % tile == 0:
        return []
    return [
        ConfigError(
            f"group_size is {group}, the device asks for a multiple of {tile}",
            where=options.places.get("frontend.quantize.calib_args.group_size"),
            hint=f"write `group_size: {tile}` or a multiple of it, or leave it out",
        )
    ]


def _multiple_errors(options: TargetOptions, sizes: Sizes, tile: int) -> list[CompilerError]:
    """The vocabulary is padded by a pass; nothing else is."""
    lengths = options.places.get("frontend.shape.input_ids")
    ranks, inner = options.tensor_parallel, sizes.intermediate
    is_shared = ranks > 1 and inner % tile == 0 and inner % ranks == 0
    share = {
        f"intermediate_size of each of {ranks} ranks": (
            inner // ranks,
            options.places.get("frontend.model_kwargs.tp"),
        )
    }
    found = {
        "hidden_size": (sizes.hidden, None),
        "intermediate_size": (sizes.intermediate, None),
        "head_dim": (sizes.head_dim, None),
        "the prefill window": (options.window, lengths),
        "the context": (options.context, lengths),
        **(share if is_shared else {}),
    }
    return [
        ConfigError(f"{name} is {value}, the device asks for a multiple of {tile}", where=place)
        for name, (value, place) in found.items()
        if value % tile
    ]


def _memory_errors(
    options: TargetOptions, sizes: Sizes, profile: DeviceProfile
) -> list[CompilerError]:
    needed = memory_bytes(options, sizes, profile.matrix_tile)
    total = sum(needed.values())
    if total <= profile.memory_bytes:
        return []
    parts = ", ".join(f"{name} {size / _GB:.2f}" for name, size in needed.items())
    return [
        ConfigError(
            f"a die needs {total / _GB:.2f} GB ({parts}), the profile gives it "
            f"{profile.memory_bytes / _GB:.2f} GB",
            where=options.places.get("frontend.shape.input_ids"),
            hint="raise frontend.model_kwargs.tp, shorten the context, or quantize to int8",
            code="device-memory",
        )
    ]


def memory_bytes(options: TargetOptions, sizes: Sizes, tile: int) -> dict[str, int]:
    """What one die holds: weights, cache, workspace.

    Matrices are float16, or int8 with a float32 scale for each output or group; vectors float32.
    The cache is float16, or int8 with a float32 scale for each head of a token. The workspace is
    that of a window: the largest values that live together, in float16.
    """
    ranks = options.tensor_parallel
    kv_heads = sizes.kv_heads * kv_repeats(sizes.kv_heads, ranks) // ranks
    q_width, kv_width = sizes.heads // ranks * sizes.head_dim, kv_heads * sizes.head_dim
    inner = sizes.intermediate // ranks
    vocabulary = -(-sizes.vocabulary // (tile * ranks)) * tile
    vectors = (q_width + 2 * kv_width + 2 * sizes.hidden) * sizes.layers + sizes.hidden
    has_int8_cache = options.quantize is not None and options.quantize.kind.has_int8_cache
    per_token = kv_width + 4 * kv_heads if has_int8_cache else 2 * kv_width
    widths = 3 * sizes.hidden + 2 * q_width + 2 * kv_width + 3 * inner
    matrices = _layer_matrices(sizes, q_width=q_width, kv_width=kv_width, inner=inner)
    matrices["lm_head"] = (sizes.hidden, vocabulary)
    # The head of several ranks is a share of its own, beside a whole embedding.
    if ranks > 1 or not sizes.is_tied:
        matrices["model.embed_tokens"] = (sizes.hidden, sizes.vocabulary)
    weights = sum(_matrix_bytes(options, module, shape) for module, shape in matrices.items())
    return {
        "weights": weights + vectors * 4,
        "cache": 2 * sizes.layers * options.context * per_token,
        "workspace": options.window * widths * 2 + vocabulary * 4 * 2,
    }


def _layer_matrices(
    sizes: Sizes, *, q_width: int, kv_width: int, inner: int
) -> dict[str, tuple[int, int]]:
    """Module -> inputs and outputs that one rank holds, of every layer."""
    hidden = sizes.hidden
    shapes = {
        "self_attn.q_proj": (hidden, q_width),
        "self_attn.k_proj": (hidden, kv_width),
        "self_attn.v_proj": (hidden, kv_width),
        "self_attn.o_proj": (q_width, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(sizes.layers)
        for name, shape in shapes.items()
    }


def _matrix_bytes(options: TargetOptions, module: str, shape: tuple[int, int]) -> int:
    asked, (inputs, outputs) = options.quantize, shape
    if asked is None or not asked.has_codes(module):
        return 2 * inputs * outputs
    groups = -(-inputs // asked.group_size) if asked.group_size else 1
    return (inputs + 4 * groups) * outputs
