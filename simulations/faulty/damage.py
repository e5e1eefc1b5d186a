"""What becomes of files while a server is down."""

from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]
"""Damages files in a run's folder."""


def cut_checkpoint(run: Path) -> None:
    """Cut the newest checkpoint's tensors in half."""
    _cut(_newest(run))


def flip_checkpoint(run: Path) -> None:
    """Turn one bit of the newest checkpoint's tensors."""
    path = _newest(run)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def lose_checkpoint(run: Path) -> None:
    """Remove the newest checkpoint's tensors."""
    _newest(run).unlink()


def cut_voucher(run: Path) -> None:
    """Cut in half the file that vouches for the newest checkpoint."""
    _cut(_newest(run).with_suffix(".json"))


def cut_history(run: Path) -> None:
    """Cut the last line of the history in half."""
    path = run / "history.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][: len(whole[-1]) // 2])


def _newest(run: Path) -> Path:
    return max((run / "checkpoint").glob("round-*.json")).with_suffix(".safetensors")


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
