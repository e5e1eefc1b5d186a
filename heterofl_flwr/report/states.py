"""The folder of one client's states: a file for each round."""

from pathlib import Path


def states_in(folder: Path) -> dict[int, Path]:
    """Return the states in a client's folder by round, ascending; files of other names are none."""
    named = [path for path in folder.glob("*.safetensors") if path.stem.isdecimal()]
    return {int(path.stem): path for path in sorted(named, key=lambda path: int(path.stem))}


def state_path(folder: Path, server_round: int) -> Path:
    """Return where the state of a round is."""
    return folder / f"{server_round:06d}.safetensors"
