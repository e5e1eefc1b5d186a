"""Which of the settings a model takes."""

import inspect

from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.groups import Settings


def takes(model: str, option: str) -> bool:
    """Say whether a model of ours has an option."""
    return model in MODELS and option in inspect.signature(MODELS[model]).parameters


def model_options(settings: Settings) -> dict[str, object]:
    """Return the options for ``build_model`` that are settings; what depends on the data is the caller's to add.

    A model of the user's own, ``module:function``, gets none.
    """
    options: dict[str, object] = {
        "hidden": settings.model.hidden,
        "norm": settings.model.norm,
        "scaler": settings.model.scaler,
        "encoder_init": settings.fidelity.encoder_init,
        "global_rate": settings.mix.global_rate,
    }
    if not settings.model.hidden:
        del options["hidden"]
    return {name: value for name, value in options.items() if takes(settings.model.name, name)}
