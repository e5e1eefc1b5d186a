"""From the row of a sweep to its configuration."""

from collections.abc import Mapping
from functools import lru_cache

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from heterofl_flwr.settings import flatten
from simulations.sweeps.rows import Row


class Composer:
    """Composes the configuration of each row, with dotted keys.

    Hydra takes a tenth of a second for one, and the paper has hundreds, so it composes each choice of groups once. Then
    a row's plain values are put in, which is all that Hydra does with them.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, parser: OverridesParser) -> None:
        self._loader = loader
        self._master = master
        self._keys = flat(master).keys()
        self._read = lru_cache(maxsize=None)(parser.parse_override)
        self._base = lru_cache(maxsize=64)(self._compose)

    def __call__(self, row: Row) -> dict[str, object]:
        """Return the configuration of a row."""
        overrides = {text: self._read(text) for text in row}
        plain = {text: override for text, override in overrides.items() if self._is_plain(override)}
        others = tuple(text for text in row if text not in plain)
        return {**self._base(others), **{override.key_or_group: override.value() for override in plain.values()}}

    def _compose(self, row: Row) -> Mapping[str, object]:
        return flat(self._loader.load_sweep_config(self._master, list(row)))

    def _is_plain(self, override: Override) -> bool:
        value = override.value()
        refers = isinstance(value, str) and "${" in value
        known = override.key_or_group in self._keys and override.package is None
        return (
            known
            and override.type == OverrideType.CHANGE
            and isinstance(value, bool | int | float | str)
            and not refers
        )


def flat(config: DictConfig) -> dict[str, object]:
    """Return a composed configuration without Hydra's own part, with dotted keys."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    container = OmegaConf.to_container(own, resolve=True)
    return flatten({str(key): value for key, value in dict(container).items()})  # type: ignore[arg-type]
