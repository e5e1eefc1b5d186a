"""Write a model in several formats, checked, with a manifest."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from torch.utils._pytree import tree_leaves

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.export import checks
from heterofl_flwr.export.checks import TOLERANCE, Axes, Inputs, Run
from heterofl_flwr.export.formats import FORMATS, Format, formats_named
from heterofl_flwr.export.program import Traced, trace
from heterofl_flwr.nn.profile import profile
from heterofl_flwr.runs.files import sync, to_json
from heterofl_flwr.runs.origin import commit, machine

MANIFEST = "manifest.json"
BATCH: Axes = {0: "batch"}
VERSION = 1


def export_model(
    model: nn.Module,
    inputs: object,
    folder: str | Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    dynamic: Axes = BATCH,
    outputs: Sequence[str] = ("logits",),
    facts: Mapping[str, object] | None = None,
    runs: int = 100,
) -> dict[str, object]:
    """Write a model's files and ``manifest.json`` into a folder, and return what the manifest says.

    The folder gets its name when every file has been opened again and said what the model says, within 1e-4 of the
    largest output (``TOLERANCE``); until then, and after an error, what was there before is untouched.

    Parameters
    ----------
    model : nn.Module
        Any model; one with static batch norm as ``with_static_norm`` returns it. It is copied, never changed.
    inputs : object
        Real examples, such as some of the test data: a tensor, a tuple of the model's arguments, or a mapping of named
        ones. Files are checked with all of them at once, with one, and with half of them. None of them is written.
    folder : str | Path
        Where to. An earlier export is replaced.
    formats : Sequence[str]
        Some of ``FORMATS``; ``onnx`` needs ``heterofl-flwr[export]``.
    dynamic : Mapping[int, str]
        Which axes of the inputs may have any length, and their names; for a model that reads text,
        ``{0: "batch", 1: "sequence"}``.
    outputs : Sequence[str]
        What the outputs are called.
    facts : Mapping[str, object] | None
        What else the manifest shall say, as JSON can hold it.
    runs : int
        How many runs the latency is the median of; 0 measures none.

    Raises
    ------
    HeteroFLError
        If the model cannot be exported, or a file says something else than it does.
    """
    if runs < 0:
        raise ConfigError(f"runs is {runs}; expected 0 or more")
    chosen = formats_named(formats)
    given = checks.read_inputs(inputs, dynamic)
    traced = trace(model, given, dynamic, outputs)
    measured = checks.first_example(given) if 0 in dynamic else given  # fewer do not run where their number is fixed
    cost = profile(traced.model, measured)
    examples = len(tree_leaves(measured)[0])
    cuts = checks.build_cuts(given, dynamic)
    packages = ["heterofl-flwr", "torch", *(package for one in chosen.values() for package in one.needs)]
    with whole_folder(Path(folder), marked_by=MANIFEST) as new:
        content = {
            "format": VERSION,
            **(facts or {}),
            "parameters": cost.parameters,
            "macs": cost.macs,
            "inputs": list(traced.inputs),
            "outputs": list(traced.outputs),
            "batch_norm": traced.folding,
            "files": _write(traced, cuts, chosen, new, partial(checks.median_milliseconds, measured, runs)),
            "check": {
                "tolerance": TOLERANCE,
                "inputs": [[list(one.shape) for one in tree_leaves(cut)] for cut in cuts],
            },
            "latency": {"runs": runs, "threads": 1, "examples": examples, "machine": machine()} if runs else None,
            "versions": {name: metadata.version(name) for name in packages},
            "commit": commit(),
        }
        (new / MANIFEST).write_text(f"{to_json(content, indent=2)}\n", encoding="utf-8")
    return content


def _write(
    traced: Traced,
    cuts: Sequence[Inputs],
    formats: Mapping[str, Format],
    folder: Path,
    time: Callable[[Run], float | None],
) -> dict[str, object]:
    """Write and check one file a format; return the manifest's facts about each."""
    expected = [checks.compute_outputs(traced.model, cut) for cut in cuts]
    for cut, outputs in zip(cuts, expected, strict=True):
        if not all(bool(one.isfinite().all()) for one in outputs):
            raise HeteroFLError(
                f"the model's own outputs on {checks.shapes(cut)} hold NaN or infinities: its training has "
                f"diverged, or the inputs are not what it was trained on"
            )
    found: dict[str, object] = {}
    for name, one in formats.items():
        path = folder / one.file
        one.write(traced, path)
        run = one.open(traced, path)
        found[name] = {
            "file": one.file,
            "bytes": sum(part.stat().st_size for part in folder.glob(f"{one.file}*")),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "difference": checks.compare(name, run, cuts, expected),
            "milliseconds": time(run),
        }
    return found


@contextmanager
def whole_folder(path: Path, *, marked_by: str) -> Iterator[Path]:
    """Yield a new folder that takes a path's place when all went well; after an error nothing is left of it.

    A folder that is there already is replaced if it holds a file ``marked_by``; if not, it is not ours.
    """
    if path.exists() and not (path / marked_by).is_file():
        raise ConfigError(f"{path} is there already and is no export (it has no {marked_by}): choose another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            yield new
            for file in new.iterdir():
                sync(file)
            _replace(path, new, old=Path(temporary, "old"))
            sync(path.parent)
    except OSError as error:
        raise HeteroFLError(
            f"cannot write {path}: {error.strerror or error}; make room or grant access, or choose another folder"
        ) from error


def _replace(path: Path, new: Path, old: Path) -> None:
    """Move a folder to a path; what is there moves to ``old``, and back after an error."""
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
