"""Small edits of an app's files: where to find a place, and what to write there."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heterofl_flwr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Edit:
    """Write ``new`` in the places of a file that match."""

    file: str  # the file, from the app's folder
    pattern: str  # a regular expression, in which `^` and `$` are ends of lines
    new: str = ""  # what to write there, with `\1` and so on for the groups of the pattern; nothing deletes
    times: int = 1  # in how many places


def convert(example: str, folder: Path, edits: Iterable[Edit]) -> int:
    """Edit an app's files in place; return how many lines are new.

    Raises
    ------
    ConfigError
        If a file or a place is missing, which names the example, the file and the pattern.
    """
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    for edit in edits:
        path = folder / edit.file
        if path not in before:
            before[path] = after[path] = _read(example, path, edit)
        after[path], times = re.subn(edit.pattern, edit.new, after[path], flags=re.MULTILINE)
        if times != edit.times:
            raise ConfigError(
                f"{example}: {edit.file} has {times} places that match {edit.pattern!r}; expected {edit.times}. The "
                "checkout holds another version of the example, so its conversion has to be written anew"
            )
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return sum(count_added(before[path], after[path]) for path in after)


def count_added(before: str, after: str) -> int:
    """Return how many lines a diff adds; blank ones do not count."""
    old, new = before.splitlines(), after.splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(_filled(new[first:last]) for kind, _, _, first, last in changes if kind != "equal")


def _filled(lines: Sequence[str]) -> int:
    return sum(bool(line.strip()) for line in lines)


def _read(example: str, path: Path, edit: Edit) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{example}: {edit.file} cannot be read ({error.strerror}), so {edit.pattern!r} cannot be looked for. "
            "Expected the examples of Flower's repository"
        ) from error


MIX = "a1-b1-c1-d1-e1"

Config = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One of Flower's examples."""

    name: str  # its folder under `examples/`
    package: str  # the folder of its modules
    edits: Sequence[Edit]  # what converts it
    api: str = "message"  # which of Flower's interfaces it uses: `message` or `classic`
    needs: Sequence[str] = ()  # modules that it imports beside those of this project
    nodes: int = 10  # how it is run; see `simulations.conversions.play.Job`
    rows: int = 5000
    config: Config = field(default_factory=dict)
    node_config: dict[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()
    personal: bool = False  # whether clients keep layers of their own, so that only their evaluation counts
    remark: str = ""  # what the conversion changes beside sizes

    @property
    def short(self) -> str:
        """The first folder of the name."""
        return self.name.partition("/")[0]


def _server(package: str, build: str) -> list[Edit]:
    """Return the edits of a ServerApp that makes a ``FedAvg``."""
    file = f"{package}/server_app.py"
    return [
        Edit(file, r"^from flwr\.serverapp\.strategy import FedAvg$", "from heterofl_flwr import HeteroFL"),
        Edit(file, r"\bFedAvg\(", f'HeteroFL({build}, "{MIX}", '),
    ]


def _client(package: str, build: str, load: str, times: int = 2) -> list[Edit]:
    """Return the edits of a ClientApp; ``load`` finds where it makes a model and loads what came."""
    file = f"{package}/client_app.py"
    return [
        Edit(
            file,
            r"^from flwr\.clientapp import ClientApp$",
            r"\g<0>\nfrom heterofl_flwr.client import answer_queries, reply, submodel",
        ),
        Edit(file, r"^app = ClientApp\(\)$", rf"\g<0>\nanswer_queries(app, {build})"),
        Edit(file, load, f"model = submodel(msg, {build})", times),
    ]


def _reply(package: str) -> list[Edit]:
    """Return the edits of where most examples pack what they trained."""
    file = f"{package}/client_app.py"
    packed = r'^    content = RecordDict\(\{"arrays".*\n    return Message\(.*\)$'
    return [
        Edit(file, packed, '    return reply(msg, model, metrics=metrics, num_examples=metrics["num-examples"])'),
        Edit(file, r"^    model_record = .*\n"),
    ]


def _numpy_client(package: str, build: str) -> list[Edit]:
    """Return the edits of a ``NumPyClient`` that keeps its context."""
    file = f"{package}/client_app.py"
    answer = "    def get_properties(self, config):\n        return properties_of(self.context)\n\n"
    return [
        Edit(file, r"^    def fit\(", rf"{answer}\g<0>"),
        Edit(file, r"set_weights\(self\.net, parameters\)", f"self.net = submodel(parameters, config, {build})", 2),
        Edit(file, r"get_weights\(self\.net\)", "parameters_of(self.net)"),
    ]


LOADED = r"model = \w+\(\)\n    model\.load_state_dict\(.*\)$"
"""Where most examples make a model and load what came."""


def _lenet(package: str) -> list[Edit]:
    """Return the edits that make the hidden widths of the small CNN follow a rate."""
    file = f"{package}/task.py"
    return [
        Edit(file, r"^import torch$", r"\g<0>\nfrom heterofl_flwr.core import width"),
        Edit(file, r"def __init__\(self\)", "def __init__(self, rate=1.0)"),
        Edit(file, r"Conv2d\((\d), 6,", r"Conv2d(\1, width(6, rate),"),
        Edit(file, r"Conv2d\(6, 16,", "Conv2d(width(6, rate), width(16, rate),"),
        Edit(file, r"Linear\(16 \* (\d) \* \d, 120\)", r"Linear(width(16, rate) * \1 * \1, width(120, rate))"),
        Edit(file, r"Linear\(120, 84\)", "Linear(width(120, rate), width(84, rate))"),
        Edit(file, r"Linear\(84, 10\)", "Linear(width(84, rate), 10)"),
    ]


def _flat(package: str) -> Edit:
    """Return the edit of a ``view`` with a plain number of features."""
    return Edit(f"{package}/task.py", r"x\.view\(-1, .*\)$", "x.flatten(1)")


EXAMPLES = (
    Example(
        name="quickstart-pytorch",
        package="pytorchexample",
        edits=[
            *_lenet("pytorchexample"),
            _flat("pytorchexample"),
            *_server("pytorchexample", "Net"),
            *_client("pytorchexample", "Net", LOADED),
            *_reply("pytorchexample"),
        ],
    ),
    Example(
        name="advanced-pytorch",
        package="pytorch_example",
        needs=["wandb"],
        config={"num-server-rounds": 3, "fraction-train": 1.0},
        personal=True,
        remark="the server's own evaluation lacks the classifier, which clients keep",
        edits=[
            Edit("pytorch_example/task.py", r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
            Edit(
                "pytorch_example/task.py",
                r"^def train\(",
                r"build = elastic(Net(), torch.zeros(1, 1, 28, 28))\n\n\n\g<0>",
            ),
            Edit(
                "pytorch_example/strategy.py",
                r"^from flwr\.serverapp\.strategy import FedAvg, Result$",
                "from flwr.serverapp.strategy import Result\nfrom heterofl_flwr import HeteroFL",
            ),
            Edit("pytorch_example/strategy.py", r"\(FedAvg\)", "(HeteroFL)"),
            Edit("pytorch_example/server_app.py", r"^(from pytorch_example\.task import )", r"\1build, "),
            Edit("pytorch_example/server_app.py", r"net\.load_state_dict\(.*\(\)", r"\g<0>, strict=False"),
            # The classifier stays with its client, as it does in the example.
            Edit(
                "pytorch_example/server_app.py",
                r"CustomFedAvg\(\n",
                f'\\g<0>        build, "{MIX}", shared=["conv*", "fc1*"],\n',
            ),
            Edit("pytorch_example/client_app.py", r"^(from pytorch_example\.task import )Net", r"\1Net, build"),
            Edit("pytorch_example/client_app.py", r"^    net\.fc2\.load_state_dict\(.*$", "    return state_dict"),
            Edit(
                "pytorch_example/client_app.py",
                r"^    (# Restore this client's pre|# \(no action|load_layer_weights).*\n",
                times=6,
            ),
            Edit(
                "pytorch_example/client_app.py",
                r"^    save_layer_weights_to_state\(.*$",
                "    context.state[classification_head_name] = ArrayRecord(own_part(msg, model))",
            ),
            *_client("pytorch_example", "build", LOADED),
            Edit(
                "pytorch_example/client_app.py",
                r"submodel\(msg, build\)",
                "submodel(msg, build, load_layer_weights_from_state(context.state, None))",
                times=2,
            ),
            Edit("pytorch_example/client_app.py", r"(import answer_queries), ", r"\1, own_part, "),
            *_reply("pytorch_example"),
        ],
    ),
    Example(
        name="quickstart-pytorch-lightning",
        package="pytorchlightning_example",
        rows=2000,
        needs=["pytorch_lightning"],
        edits=[
            Edit(
                "pytorchlightning_example/task.py",
                r"^import torch$",
                r"\g<0>\nfrom heterofl_flwr.core import width",
            ),
            Edit("pytorchlightning_example/task.py", r"def __init__\(self\)", "def __init__(self, rate=1.0)"),
            Edit("pytorchlightning_example/task.py", r"Linear\((.*), 64\)", r"Linear(\1, width(64, rate))", 2),
            Edit("pytorchlightning_example/task.py", r"Linear\(64, (.*)\),$", r"Linear(width(64, rate), \1),", 2),
            *_server("pytorchlightning_example", "LitAutoEncoder"),
            *_client("pytorchlightning_example", "LitAutoEncoder", LOADED),
            *_reply("pytorchlightning_example"),
        ],
    ),
    Example(
        name="quickstart-huggingface",
        package="huggingface_example",
        rows=1000,
        needs=["transformers", "evaluate"],
        config={"fraction-train": 1.0, "fraction-evaluate": 1.0},
        edits=[
            Edit("huggingface_example/task.py", r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
            Edit(
                "huggingface_example/task.py",
                r"^def train_fn",
                r'build = elastic(get_model("prajjwal1/bert-tiny"), torch.ones(1, 8, dtype=torch.long))\n\n\n\g<0>',
            ),
            *_server("huggingface_example", "build"),
            Edit("huggingface_example/server_app.py", r"import get_model$", "import build, get_model"),
            Edit("huggingface_example/client_app.py", r"import get_model, ", "import build, "),
            *_client("huggingface_example", "build", r"model = get_model\(model_name\)\n"),
            Edit(
                "huggingface_example/client_app.py",
                r"\n    # .*\n    arrays = msg.*\n    model\.load_state_dict\(.*$",
                times=2,
            ),
            Edit("huggingface_example/client_app.py", r"^    model_record = .*\n", times=2),
            Edit("huggingface_example/client_app.py", r"^    # Construct RecordDict.*\n    content = .*\n", times=2),
            Edit(
                "huggingface_example/client_app.py",
                r'(metrics = MetricRecord\(\{"num-.*\n)    return .*$',
                r"\1    return reply(msg, model, num_examples=len(trainloader))",
            ),
            Edit(
                "huggingface_example/client_app.py",
                r"^    return Message\(.*\)$",
                "    return reply(msg, num_examples=len(testloader), metrics=metrics)",
            ),
        ],
    ),
    Example(
        name="flower-simulation-step-by-step-pytorch/my-awesome-app",
        package="my_awesome_app",
        api="classic",
        needs=["wandb"],
        config={"fraction-fit": 1.0},
        edits=[
            *_lenet("my_awesome_app"),
            _flat("my_awesome_app"),
            Edit(
                "my_awesome_app/my_strategy.py",
                r"^from flwr\.server\.strategy import FedAvg$",
                "from heterofl_flwr.classic import HeteroFL",
            ),
            Edit("my_awesome_app/my_strategy.py", r"\(FedAvg\)", "(HeteroFL)"),
            Edit(
                "my_awesome_app/server_app.py",
                r"strategy = CustomFedAvg\(\n",
                f'\\g<0>        Net, "{MIX}", num_rounds=num_rounds,\n',
            ),
            Edit(
                "my_awesome_app/client_app.py",
                r"^import torch$",
                r"\g<0>\nfrom heterofl_flwr.classic import parameters_of, properties_of, submodel",
            ),
            Edit(
                "my_awesome_app/client_app.py",
                r"^        self\.client_state = .*\n",
                r"        self.context = context\n\g<0>",
            ),
            *_numpy_client("my_awesome_app", "Net"),
        ],
    ),
    Example(
        name="opacus",
        package="opacus_fl",
        needs=["opacus", "tqdm"],
        rows=1000,
        edits=[
            *_lenet("opacus_fl"),
            _flat("opacus_fl"),
            *_server("opacus_fl", "Net"),
            *_client("opacus_fl", "Net", r"model = Net\(\)\.to\(device\)\n    model\.load_state_dict\(.*\)$"),
            Edit("opacus_fl/client_app.py", r"model = submodel\(msg, Net\)", r"\g<0>.to(device)", 2),
            Edit("opacus_fl/client_app.py", r"^    out_arrays = .*\n"),
            Edit(
                "opacus_fl/client_app.py",
                r"return Message\(\n +content=.*out_arrays.*\n.*\n    \)",
                "return reply(msg, private_model._module, metrics=out_metrics, "
                'num_examples=out_metrics["num-examples"])',
            ),
        ],
    ),
    Example(
        name="fl-dp-sa",
        package="fl_dp_sa",
        api="classic",
        nodes=500,  # of which a fifth is drawn: the number that its noise is made for
        rows=20_000,
        config={"num-sampled-clients": 100, "num-shares": 3, "reconstruction-threshold": 2},
        remark="secure aggregation left out: it adds up replies of one size; a hundred clients a round, because "
        "entries that few hold get more noise",
        edits=[
            Edit("fl_dp_sa/task.py", r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
            Edit(
                "fl_dp_sa/task.py",
                r"^def load_data\(",
                r"build = elastic(Net(), torch.zeros(1, 1, 28, 28))\n\n\n\g<0>",
            ),
            Edit("fl_dp_sa/server_app.py", r"^from fl_dp_sa\.task import", r"\g<0> build,"),
            Edit("fl_dp_sa/client_app.py", r"^from fl_dp_sa\.task import Net,", r"from fl_dp_sa.task import build,"),
            Edit("fl_dp_sa/client_app.py", r"^from flwr\.client\.mod import .*\n"),
            Edit(
                "fl_dp_sa/client_app.py",
                r"^import torch$",
                r"\g<0>\nfrom heterofl_flwr.classic import parameters_of, properties_of, submodel",
            ),
            Edit("fl_dp_sa/client_app.py", r"^    mods=\[\n(.*_mod,\n)*    \],\n"),
            Edit("fl_dp_sa/client_app.py", r"trainloader, testloader\) -> None:", "trainloader, testloader, context):"),
            Edit("fl_dp_sa/client_app.py", r"^        self\.net = Net\(\)$", "        self.context = context"),
            Edit(
                "fl_dp_sa/client_app.py",
                r"Client\(trainloader, testloader\)",
                "Client(trainloader, testloader, context)",
            ),
            *_numpy_client("fl_dp_sa", "build"),
            Edit(
                "fl_dp_sa/server_app.py",
                r"^(from flwr\.server\.strategy import ).*FedAvg$",
                "from heterofl_flwr import Privacy\nfrom heterofl_flwr.classic import HeteroFL",
            ),
            Edit("fl_dp_sa/server_app.py", r"(DefaultWorkflow), SecAggPlusWorkflow$", r"\1"),
            Edit(
                "fl_dp_sa/server_app.py",
                r"strategy = FedAvg\(\n",
                f'strategy = HeteroFL(\n        build, "{MIX}", num_rounds=3,\n'
                '        privacy=Privacy(clip=context.run_config["clipping-norm"], '
                'noise=context.run_config["noise-multiplier"]),\n',
            ),
            Edit("fl_dp_sa/server_app.py", r"^        min_fit_clients=.*\n"),
            Edit("fl_dp_sa/server_app.py", r"^    noise_multiplier = .*\n    clipping_norm = .*\n"),
            Edit("fl_dp_sa/server_app.py", r"^    strategy = DifferentialPrivacy\w+\(\n(        .*\n)*    \)\n"),
            Edit("fl_dp_sa/server_app.py", r"DefaultWorkflow\(\n(        .*\n)*    \)$", "DefaultWorkflow()"),
        ],
    ),
    Example(
        name="embedded-devices",
        package="embeddedexample",
        node_config={"dataset-path": "datasets/fashionmnist_part_{number}"},
        prepare=["generate_dataset.py", "--num-supernodes", "10"],
        edits=[
            *_lenet("embeddedexample"),
            _flat("embeddedexample"),
            *_server("embeddedexample", "Net"),
            *_client("embeddedexample", "Net", LOADED),
            *_reply("embeddedexample"),
        ],
    ),
    Example(
        name="flowertune-vit",
        package="vitexample",
        rows=1000,
        remark="all parameters travel; only the head is trained, as before",
        edits=[
            Edit("vitexample/task.py", r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
            Edit(
                "vitexample/task.py",
                r"^def trainer\(",
                r"build = elastic(get_model(102), torch.zeros(1, 3, 224, 224))\n\n\n\g<0>",
            ),
            *_server("vitexample", "build"),
            Edit("vitexample/server_app.py", r"^(from vitexample\.task import )", r"\1build, "),
            Edit("vitexample/server_app.py", r"^ +finetune_layers = .*\n", times=2),
            Edit("vitexample/server_app.py", r"finetune_layers\.", "model.", 2),
            Edit("vitexample/client_app.py", r"^    get_model,$", "    build,"),
            *_client(
                "vitexample",
                "build",
                r"model = get_model\(num_classes\)\n    finetune_layers = .*\n"
                r"    finetune_layers\.load_state_dict\(\n.*\n    \)$",
                times=1,
            ),
            *_reply("vitexample"),
        ],
    ),
)
