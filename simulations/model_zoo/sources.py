"""Models of torchvision, timm and transformers, selected by a rule for each package and built without download."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.nn.execution import num_parameters

SIZE = 64
LARGEST = 30_000_000
"""Maximum number of parameters of a model of timm or transformers."""
CLASSES = 10

# Arguments of timm's constructors for the depth, with small values: all blocks of a model are alike.
_DEPTHS: tuple[dict[str, Any], ...] = ({"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {"depth": 2}, {})
# Image sizes of torchvision's models that do not accept 64 x 64: auxiliary heads, windows, patches of a fixed size.
_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}
# The auto classes of transformers, with the name of their models' input.
_TASKS = dict.fromkeys(("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM"), "input_ids")
_TASKS |= {"IMAGE_CLASSIFICATION": "pixel_values"}
# Values of a small configuration of transformers, with the names of its fields.
_SMALL = {
    64: "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim d_embed "
    "max_position_embeddings n_positions n_ctx",
    2: "n_layer n_layers num_hidden_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_key_value_heads eos_token_id",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads",
    96: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff hidden_dim n_inner ffn_hidden_size d_inner",
    16: "d_kv head_dim kv_channels d_head v_head_dim qk_rope_head_dim qk_nope_head_dim",
    120: "vocab_size",
    32: "image_size embedding_size moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank",
    8: "patch_size rotary_dim num_experts num_local_experts n_routed_experts",
    CLASSES: "num_labels",
    0: "pad_token_id",
    1: "bos_token_id decoder_start_token_id",
}


class NotBuiltError(HeteroFLError):
    """The rule gives no model that runs and is small enough."""


class Case(NamedTuple):
    """A model to check, with two examples."""

    name: str
    model: nn.Module
    inputs: Tensor


class Source(NamedTuple):
    """A package of models: names of models to check, functions from a name to its family and model, and the rule."""

    names: Callable[[], Sequence[str]]
    family: Callable[[str], str]
    make: Callable[[str], Case]
    rule: str


def version_of(source: str) -> str:
    """Return the version of a package."""
    return version(source).partition("+")[0]


def _prefix(name: str) -> str:
    """Return the lower-case letters at the beginning of a name."""
    return re.match("[a-z]*", name)[0]  # type: ignore[index]  # the pattern always matches, maybe an empty text


def _torchvision_names() -> list[str]:
    models = import_module("torchvision.models")
    return list(models.list_models(module=models))


def _torchvision(name: str) -> Case:
    size = _SIZES.get(name, SIZE)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # their initialisation is slow, and all weights are drawn later
    model = import_module("torchvision.models").get_model(name, weights=None, **options)
    return Case(name, model, torch.randn(2, 3, size, size))


def _timm_families() -> list[str]:
    return sorted({_prefix(name) for name in import_module("timm").list_models()} - {"test"})


def _timm(family: str) -> Case:
    """Return the first architecture of a family, by name, that is small enough.

    It is built with few blocks and gets the smallest images that it accepts.
    """
    timm, reason = import_module("timm"), f"none has at most {LARGEST:,} parameters"
    names = sorted(one for one in timm.list_models() if _prefix(one) == family)
    for name, depth in product(names, _DEPTHS):
        create = partial(timm.create_model, name, num_classes=CLASSES, **depth)
        try:
            with torch.device("meta"), _OnProcessor():
                planned = create()
        except Exception:  # a model that does not accept this depth may raise any error
            continue
        if num_parameters(planned) > LARGEST:
            continue
        own = planned.default_cfg["input_size"][-1]
        for size, options in ((SIZE, {}), (SIZE, {"img_size": SIZE}), (2 * SIZE, {}), (own, {})):
            try:
                model = create(**options).eval()
                images = torch.randn(2, 3, size, size)
                with torch.no_grad():
                    model(images)
                return Case(name, model, images)
            except Exception as error:  # a model that does not accept this size may raise any error
                reason = f"{name}: {type(error).__name__}: {error}"
    raise NotBuiltError(reason)


class _OnProcessor(TorchFunctionMode):
    """Function mode that creates ranges and constants on the CPU, not the meta device: code may read values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.linspace, torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _transformers_classes() -> dict[str, tuple[str, str]]:
    """Return the model type and the task of each class; of several types, the type in the name of the class."""
    auto = import_module("transformers.models.auto.modeling_auto")
    found: dict[str, tuple[str, str]] = {}
    for task in _TASKS:
        for kind, name in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            own = name if isinstance(name, str) else name[0]
            named = own.lower().startswith(re.sub(r"\W|_", "", kind)) and found.get(own, ("", task))[1] == task
            if named or own not in found:
                found[own] = kind, task
    return found


def small_config(kind: str) -> Any:
    """Return a configuration of a model type with the values of ``_SMALL``."""
    config = import_module("transformers").CONFIG_MAPPING[kind]
    usual = vars(config()) | {name: getattr(config(), name) for name in config.attribute_map if hasattr(config(), name)}
    optional = ("num_key_value_heads", "head_dim")
    small = {name: number for number, names in _SMALL.items() for name in names.split()}
    own = {name: number for name, number in small.items() if type(usual.get(name)) is int}
    own.update({name: small[name] for name in optional if name in usual and usual[name] is None})
    made = config(**own)
    made.use_cache = False
    return made


def _transformers(name: str) -> Case:
    kind, task = _transformers_classes()[name]
    try:
        config = small_config(kind)
        create = partial(getattr(import_module("transformers"), name), config)
        with torch.device("meta"):
            number = num_parameters(create())
        if number > LARGEST:
            raise NotBuiltError(f"it has {number:,} parameters")
        model = LogitsOnly(create(), _TASKS[task]).eval()
        size = getattr(config, "image_size", SIZE)
        size = size if isinstance(size, int) else size[0]
        images = task == "IMAGE_CLASSIFICATION"
        shape = 2, getattr(config, "num_channels", 3), size, size
        inputs = torch.randn(shape) if images else torch.randint(3, 100, (2, 10))
        with torch.no_grad():
            model(inputs)
    except Exception as error:  # configurations and models may raise any error
        raise NotBuiltError(f"{type(error).__name__}: {error}") from error
    return Case(name, model, inputs)


class LogitsOnly(nn.Module):
    """A model of transformers that returns only its logits, without hidden states."""

    def __init__(self, model: nn.Module, takes: str) -> None:
        super().__init__()
        self.model, self.takes = model, takes
        self.options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, x: Tensor) -> Any:
        """Return the logits; the decoder of an encoder-decoder model gets the first words."""
        decoder = {"decoder_input_ids": x[:, :7]} if getattr(self.model.config, "is_encoder_decoder", False) else {}
        return self.model(**{self.takes: x}, **decoder, **self.options).logits


SOURCES = {
    "torchvision": Source(_torchvision_names, _prefix, _torchvision, "every classification model, at its own size"),
    "timm": Source(
        _timm_families,
        lambda family: family,
        _timm,
        f"of each family (names that begin with the same letters) the first architecture by name with at most "
        f"{LARGEST // 1_000_000} million parameters, with one or two blocks where its constructor takes their number",
    ),
    "transformers": Source(
        lambda: list(_transformers_classes()),
        lambda name: _transformers_classes()[name][0],
        _transformers,
        "every class of the auto classes for causal, masked and sequence-to-sequence language models and for image "
        f"classification, from its type's own configuration made small (64 wide, 2 layers, 4 heads); with at most "
        f"{LARGEST // 1_000_000} million parameters",
    ),
}
