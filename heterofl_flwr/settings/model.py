"""Which of the settings a model takes."""

import inspect
from dataclasses import replace

from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.settings.groups import Settings

EXCHANGES = ("fedh2l", "hybrid")
"""Values of ``server.strategy`` with which clients may differ in architecture."""


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


def architectures(settings: Settings) -> tuple[str, ...]:
    """Return the models' names where clients differ in them (``distill.models``); none where they do not."""
    return settings.distill.models if settings.server.strategy in EXCHANGES else ()


def of_architecture(settings: Settings, name: str) -> Settings:
    """Return settings with another model, at its own widths.

    It has the norm that is asked for, if it can have one; a setting made for a model without norm asks for none.
    """
    asked = settings.model.norm if takes(settings.model.name, "norm") else "sbn"
    norm = asked if takes(name, "norm") else "none"
    return replace(settings, model=replace(settings.model, name=name, hidden=(), norm=norm))


def of_client(settings: Settings, partition: int) -> Settings:
    """Return settings with a client's own model; architectures are dealt in turns."""
    names = architectures(settings)
    return of_architecture(settings, names[partition % len(names)]) if names else settings
