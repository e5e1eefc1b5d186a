"""A bundled set of device profiles.

Its numbers are assumptions, made to be plausible together and not measured on any device. A speed is what training may
reach on such hardware, far below a data sheet's peak; links are in bytes a second, a byte being eight bits.
"""

from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.grids.devices import DeviceProfile

EDGE: Mapping[str, DeviceProfile] = MappingProxyType(
    {
        # A small server on a fast line.
        "a": DeviceProfile(
            macs_per_second=50e9,
            download=12.5e6,
            upload=6.25e6,
            available=0.95,
            drop_out=0.01,
            jitter=0.1,
            compute_watts=40.0,
            radio_watts=1.5,
        ),
        # A laptop at home.
        "b": DeviceProfile(
            macs_per_second=20e9,
            download=6.25e6,
            upload=2.5e6,
            available=0.9,
            drop_out=0.02,
            least_work=0.8,
            jitter=0.2,
            compute_watts=15.0,
            radio_watts=1.2,
        ),
        # A telephone on a wireless network.
        "c": DeviceProfile(
            macs_per_second=5e9,
            download=3.125e6,
            upload=1.25e6,
            available=0.8,
            drop_out=0.05,
            least_work=0.5,
            jitter=0.3,
            compute_watts=4.0,
            radio_watts=1.0,
        ),
        # A single-board computer in a cabinet.
        "d": DeviceProfile(
            macs_per_second=1e9,
            download=1.25e6,
            upload=0.625e6,
            available=0.8,
            drop_out=0.05,
            least_work=0.5,
            jitter=0.3,
            compute_watts=3.0,
            radio_watts=0.8,
        ),
        # A gateway of a sensor network on a thin line.
        "e": DeviceProfile(
            macs_per_second=0.2e9,
            download=0.25e6,
            upload=0.125e6,
            available=0.7,
            drop_out=0.1,
            least_work=0.5,
            jitter=0.3,
            compute_watts=1.0,
            radio_watts=0.5,
        ),
    }
)
"""Levels a to e, from a small server to a gateway of sensors."""

BUNDLED: Mapping[str, Mapping[str, DeviceProfile]] = MappingProxyType({"edge": EDGE})
"""The sets of profiles that a setting can name."""
