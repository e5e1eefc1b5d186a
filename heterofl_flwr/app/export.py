"""Write each model of a run in several formats, into a folder in RUN/exports.

  model.safetensors  the tensors, with measured batch norm statistics; needs the model's code
  model.pt2          a program of torch.export, for torch
  model.onnx         a program for onnxruntime and similar runtimes; needs heterofl-flwr[export]

Each file is run on test examples, or on the inputs of --inputs, and its outputs are compared with the model's. Each
folder has a README.md with the sizes of the files and, without --inputs, how to prepare inputs.
"""

import argparse
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from heterofl_flwr.app.argument_types import read_path
from heterofl_flwr.app.trust import add_trust, check_trust
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import write_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from heterofl_flwr.data import Dataset, Split
    from heterofl_flwr.nn.models import Build
    from heterofl_flwr.report import RunFolder

SUMMARY = "write a run's models as safetensors, torch.export and ONNX"
EXAMPLES = """
examples:
  heterofl export runs/mine
  heterofl export runs/mine --level c --formats onnx
  heterofl export runs/mine --level b --level e --out models
  heterofl export runs/app --model task:build --inputs task:example    of a Flower app of your own, in its folder
"""

PAGE = "README.md"

COMPARED = 64
"""Maximum number of test examples on which files are compared with the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl export``."""
    parser.add_argument("folder", type=read_path, metavar="RUN", help="the run's folder")
    level = "such as c; repeatable; by default all"
    parser.add_argument("--level", action="append", default=[], metavar="LEVEL", help=level)
    formats = "some of safetensors, pt2 and onnx, with commas; may be repeated; by default all three"
    parser.add_argument("--formats", action="append", metavar="NAMES", help=formats)
    parser.add_argument("--out", type=read_path, metavar="DIR", help="where to; by default RUN/exports")
    model = "the function from a rate to the model, of an app of your own; with --inputs"
    parser.add_argument("--model", metavar="MODULE:FUNCTION", help=model)
    inputs = "a function that returns some inputs of the model, on which the files are compared with it"
    parser.add_argument("--inputs", metavar="MODULE:FUNCTION", help=inputs)
    add_trust(parser)


class Source(NamedTuple):
    """Build function, example inputs and metric of a run whose models are exported."""

    build: "Build"  # function from a rate to a new model
    inputs: "Tensor | Sequence[Tensor] | Mapping[str, Tensor]"  # examples, on which files are compared with the model
    axes: Mapping[int, str]  # names of the inputs' axes of variable length, by index of the axis
    kind: str  # name of the metric
    score: "Callable[[nn.Module, int], float | None]"  # function of a model and its round; returns the metric, if known
    text: str  # paragraph of the README.md, below its table


def run(args: argparse.Namespace) -> int:
    """Write the files of each model, and print a table of the models."""
    # Imported here, as they load torch, which takes seconds.
    from heterofl_flwr.core import formatting
    from heterofl_flwr.export.export import export_model
    from heterofl_flwr.export.formats import FORMATS, formats_named
    from heterofl_flwr.runs.folder import RunFolder
    from heterofl_flwr.runs.models import load_model, model_facts

    names = ",".join(args.formats or FORMATS).split(",")
    formats = list(formats_named([name.strip() for name in names]))  # before anything is loaded
    _check(args)
    folder, rows, run_name = RunFolder(args.folder), [], args.folder.resolve().name
    out = args.out or args.folder / "exports"
    read_source = of_users_app if args.model else of_settings
    source = read_source(folder, args)
    heads = ["model", "rate", "parameters", source.kind, *formats]
    models = model_facts(folder)
    if not models:
        raise ConfigError(
            f"the run in {folder.path} has no models: a run writes its models at its end (heterofl run --resume "
            f"{shlex.quote(str(folder.path))}), and none if clients have models of their own "
            f"(server.shared, server.strategy=fedh2l)"
        )
    for name in args.level or models:
        model, facts = load_model(folder, name, source.build), models[name]
        server_round = facts["server_round"] or 0
        sizes = export_model(model, source.inputs, out / name, formats=formats, dynamic=source.axes)
        print(f"{out / name}: written; the files compute what the model does", flush=True)
        score = formatting.score(source.kind, source.score(model, server_round))
        shown = [f"{facts['rate']:g}", f"{facts['parameters']:,}", score]
        rows.append([name, *shown, *map(formatting.size, sizes.values())])
        table = formatting.render(heads, rows[-1:], "markdown")
        after = f", after round {server_round}" if server_round else ""  # the run may go on after an export
        page = f"# Model {name} of the run in `{run_name}`{after}\n\n{table}\n\n{source.text}\n"
        write_text(out / name / PAGE, page)
    print(f"\n{formatting.render(heads, rows, 'table')}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ``ConfigError`` for arguments that do not fit each other, and for a folder that is not there."""
    if bool(args.model) != bool(args.inputs):
        raise ConfigError(
            "--model and --inputs go together: the function that builds the model, and one for its inputs"
        )
    if not args.folder.is_dir():
        raise ConfigError(f"there is no folder {args.folder}; expected the folder of a run")


def of_settings(folder: "RunFolder", args: argparse.Namespace) -> Source:
    """Return the ``Source`` of a run of this package's app, from the run's settings."""
    from heterofl_flwr.app.workload import load_workload
    from heterofl_flwr.export.export import BATCH
    from heterofl_flwr.settings.renamed import from_stored
    from heterofl_flwr.settings.validate import to_flat

    try:
        settings = {**to_flat(from_stored(folder.settings())), "run.callbacks": ""}  # an export calls no callback
    except ConfigError as error:
        raise ConfigError(f"{error}; for an app of your own, name its model and inputs (--model, --inputs)") from None
    check_trust(settings, args.folder, trusted=args.trust)
    root = str(settings.get("data.root", ""))
    moved = {} if root and Path(root).is_dir() else {"data.root": os.environ.get("HETEROFL_DATA", "")}
    workload = load_workload({**settings, **moved, "engine.device": "cpu"})
    test = workload.whole_test(folder.about().get("clients") or 0)
    inputs, axes = inputs_of(test, workload.settings.seed), {**BATCH, 1: "sequence"} if test.reading else BATCH
    kind = "perplexity" if test.reading else "accuracy"

    def score(model: "nn.Module", server_round: int) -> float:
        return workload.evaluate_centrally(model, test, server_round).metrics("global")[f"global-{kind}"]

    text = f"The score is of the run's test set. {preparation(workload.dataset)}"
    return Source(workload.build, inputs, axes, kind, score, text)


def of_users_app(folder: "RunFolder", args: argparse.Namespace) -> Source:
    """Return the ``Source`` of a run of a user's app, from ``--model`` and ``--inputs``."""
    from heterofl_flwr.common.user_code import load_function
    from heterofl_flwr.export.export import BATCH

    build, inputs = load_function(args.model, "--model"), load_function(args.inputs, "--inputs")()
    text = f"The files were compared with the model on the inputs of `{args.inputs}`."
    return Source(build, inputs, BATCH, "score", lambda model, server_round: None, text)


def inputs_of(test: "Split", seed: int) -> "Tensor":
    """Return the inputs of at most ``COMPARED`` test examples. For a text, ``seed`` determines the masked words."""
    import torch

    from heterofl_flwr.core.randomness import derive
    from heterofl_flwr.training.batches import read_tokens

    if test.reading is None:
        return test.inputs[:COMPARED]
    pieces = read_tokens(test.inputs[:COMPARED], test.reading, torch.Generator().manual_seed(derive(seed, "hidden")))
    return next(iter(pieces))[0]


def preparation(dataset: "Dataset") -> str:
    """Return the README's paragraph on how to prepare inputs. If the data are not text, it also names the classes."""
    if dataset.test.reading is not None:
        hidden = dataset.test.reading.hides_as
        return f"Inputs are words by number (the `names` of the data set); {hidden} is a hidden word to predict."
    names = ", ".join(dataset.names) if dataset.names else f"0 to {dataset.classes - 1}"
    if dataset.normal is None:
        return f"Inputs are as {dataset.name} gives them. Classes: {names}."
    what = f"columns {', '.join(dataset.columns)}" if dataset.columns else "channels of pixels, scaled to 0 to 1"
    mean, deviation = (
        ", ".join(f"{value:.9g}" for value in values) for values in (dataset.normal.mean, dataset.normal.deviation)
    )
    return f"Inputs are {what}; of each less its mean {mean}, divided by its deviation {deviation}. Classes: {names}."
