"""Reading of ``privacy.json``: how many noisy models and moments a run has published."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import reading
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.settings.validate import flatten
from heterofl_flwr.stages.privacy_accountant import KINDS, TRAINING, Releases

RELEASES = TypeAdapter(list[Releases])


def read_releases(
    path: Path, records: Sequence[RoundRecord], settings: Callable[[], Mapping[str, object]]
) -> list[Releases]:
    """Return how many noisy models and moments a run has published, by noise and clip.

    If ``records`` count more than ``privacy.json``, the difference is added, with the noise and clip in ``settings``.
    """
    counted = {kind: max((int(record.stages.get(kind, 0)) for record in records), default=0) for kind in KINDS}
    releases: list[Releases] = []
    if path.exists():
        with reading(path, "restore it, as nothing else says all that the run gave away"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict):  # a file of an older version, which wrote numbers without the noise
                counted = {kind: max(number, int(content[kind])) for kind, number in counted.items()}
            else:
                releases = RELEASES.validate_python(content)
    for kind, number in counted.items():
        missing = number - sum(entry.number for entry in releases if entry.kind == kind)
        if missing > 0:
            flat = flatten(settings())
            noise, clip = flat.get("privacy.noise"), flat.get(f"privacy.{'' if kind == TRAINING else 'moments-'}clip")
            if not isinstance(noise, float | int) or noise <= 0:
                raise ConfigError(
                    f"{path} and the history count releases without their noise, and privacy.noise of the run's "
                    f"settings is {noise!r}: set it in settings.json to the least noise that the run ever had"
                )
            releases.append(
                Releases(kind, float(noise), float(clip) if isinstance(clip, float | int) else 0.0, missing, "history")
            )
    return releases
