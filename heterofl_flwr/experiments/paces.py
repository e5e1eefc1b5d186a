"""Simulated devices for rounds that do not wait: always there, so that nothing but their speed tells them apart."""

from dataclasses import replace

from heterofl_flwr import DeviceProfile
from heterofl_flwr.grids.devices import EDGE


def by_level() -> dict[str, DeviceProfile]:
    """Return devices whose speed follows their level: those of ``edge``, without losses."""
    return {level: _reliable(profile) for level, profile in EDGE.items()}


def alike() -> dict[str, DeviceProfile]:
    """Return devices whose speed says nothing of their level, and changes from turn to turn by a factor of e or so."""
    return dict.fromkeys(EDGE, replace(_reliable(EDGE["c"]), jitter=1.0))


def _reliable(profile: DeviceProfile) -> DeviceProfile:
    return replace(profile, available=1.0, drop_out=0.0, least_work=1.0)
