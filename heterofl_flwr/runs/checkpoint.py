"""Checkpoints. Each has a safetensors file of all tensors and, written last, a JSON file of all other values."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import load
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import DAMAGED, files_by_round, to_json, write_atomic
from heterofl_flwr.common.named_tensors import pack
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.stages.privacy_accountant import Releases

log = logging.getLogger(__name__)

KEPT = 2
FORMAT = 2
PATTERN = "round-*.json"
RELEASES = TypeAdapter(list[Releases])
_PARTS = ("state", "moments", "stages")
_FACTS = [field.name for field in fields(RunState) if field.name not in _PARTS]


def save_checkpoint(folder: Path, state: RunState) -> None:
    """Write a checkpoint, then remove all checkpoints but the newest two."""
    parts = {part: getattr(state, part) for part in _PARTS}
    tensors = pack({f"{part}/{name}": tensor for part, values in parts.items() for name, tensor in values.items()})
    content = {
        "format": FORMAT,
        "tensors": sha256(tensors).hexdigest(),
        **{name: getattr(state, name) for name in _FACTS},
        "counted": list(state.counted.items()),  # in JSON, the partitions would become text
        "releases": [asdict(entry) for entry in state.releases],
    }
    signed = {"content": content, "sha256": sha256(to_json(content).encode()).hexdigest()}
    path = folder / f"round-{state.server_round:06d}.json"
    write_atomic(path.with_suffix(".safetensors"), tensors)
    write_atomic(path, json.dumps(signed, indent=1, default=dict).encode())  # to_json would turn infinities into text
    with suppress(OSError):  # files that cannot be removed now are tried again after the next checkpoint
        for old in list(files_by_round(folder, PATTERN).values())[:-KEPT]:
            old.unlink()
        # Tensors without a JSON file, and temporary files of an interrupted process.
        for old in (*folder.glob("round-*.safetensors"), *folder.glob(".*.tmp")):
            if not old.with_suffix(".json").exists():
                old.unlink()


def load_checkpoint(folder: Path, last_round: int | None = None) -> RunState:
    """Return the state in the newest undamaged checkpoint of a round up to ``last_round``; with None, of any round.

    Log a warning for each newer checkpoint. Raise ``ConfigError`` if no such checkpoint exists, or if its format is not
    ``FORMAT``.
    """
    paths = files_by_round(folder, PATTERN)
    for server_round, path in reversed(paths.items()):
        if last_round is not None and server_round > last_round:
            log.warning("checkpoint %s is of a round that the history lacks; trying the one before", path)
            continue
        try:
            return _read(path)
        except ConfigError:
            raise
        except DAMAGED as error:
            log.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
    unusable = f"; {len(paths)} damaged, or of rounds that the history lacks" if paths else ""
    raise ConfigError(
        f"{folder} holds no checkpoint to go on from{unusable}: put back a copy, or start the run anew in another "
        f"folder"
    )


def _read(path: Path) -> RunState:
    outer = json.loads(path.read_text(encoding="utf-8"))
    content = outer["content"]
    if sha256(to_json(content).encode()).hexdigest() != outer["sha256"]:
        raise ValueError("its checksum is wrong")
    if content["format"] != FORMAT:
        raise ConfigError(f"{path} has format {content['format']}, expected {FORMAT}: use the version that wrote it")
    data = path.with_suffix(".safetensors").read_bytes()
    if sha256(data).hexdigest() != content["tensors"]:
        raise ValueError("the checksum of its tensors is wrong")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, value in load(data).items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    # Older checkpoints lack some facts.
    facts: dict[str, Any] = {**parts, **{name: content[name] for name in _FACTS if name in content}}
    facts["counted"] = dict(content.get("counted", ()))
    facts["seats"] = {name: tuple(seat) for name, seat in content.get("seats", {}).items()}
    facts["releases"] = tuple(RELEASES.validate_python(content["releases"]))
    facts["callbacks"] = {
        name: json.loads(values) if isinstance(values, str) else values  # some older checkpoints have text
        for name, values in content["callbacks"].items()
    }
    return RunState(**facts)
