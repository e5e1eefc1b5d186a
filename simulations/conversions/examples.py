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

    file: str  # the module in the app's package, such as client_app
    pattern: str  # a regular expression, in which `^` and `$` are ends of lines
    new: str = ""  # what to write there, with `\1` and so on for the groups of the pattern; nothing deletes
    times: int = 1  # in how many places


def convert(example: str, folder: Path, edits: Iterable[Edit]) -> int:
    """Edit the modules of a package in place; return how many lines are new.

    A missing file or place raises a ``ConfigError`` that names the example, the file and the pattern.
    """
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    for edit in edits:
        path = folder / f"{edit.file}.py"
        if path not in before:
            try:
                before[path] = after[path] = path.read_text(encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"{example}: {edit.file}.py cannot be read ({error.strerror}), so {edit.pattern!r} cannot be "
                    "looked for. Expected the examples of Flower's repository"
                ) from error
        after[path], times = re.subn(edit.pattern, edit.new, after[path], flags=re.MULTILINE)
        if times != edit.times:
            raise ConfigError(
                f"{example}: {edit.file}.py has {times} places that match {edit.pattern!r}; expected {edit.times}. The "
                "checkout holds another version of the example, so its conversion has to be written anew"
            )
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return sum(count_added(before[path], after[path]) for path in after)


def count_added(before: str, after: str) -> int:
    """Return how many lines a diff adds; blank ones do not count."""
    old, new = before.splitlines(), after.splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(bool(line.strip()) for kind, _, _, first, last in changes if kind != "equal" for line in new[first:last])


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


def _elastic(before: str, build: str) -> list[Edit]:
    """Return the edits that let the model of a task be sliced by a trace."""
    return [
        Edit("task", r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
        Edit("task", before, rf"build = {build}\n\n\n\g<0>"),
    ]


def _server(build: str) -> list[Edit]:
    """Return the edits of a ServerApp that makes a ``FedAvg``."""
    return [
        Edit("server_app", r"^from flwr\.serverapp\.strategy import FedAvg$", "from heterofl_flwr import HeteroFL"),
        Edit("server_app", r"\bFedAvg\(", f'HeteroFL({build}, "{MIX}", '),
    ]


def _client(build: str, load: str, times: int = 2) -> list[Edit]:
    """Return the edits of a ClientApp; ``load`` finds where it makes a model and loads what came."""
    return [
        Edit(
            "client_app",
            r"^from flwr\.clientapp import ClientApp$",
            r"\g<0>\nfrom heterofl_flwr.client import answer_queries, reply, submodel",
        ),
        Edit("client_app", r"^app = ClientApp\(\)$", rf"\g<0>\nanswer_queries(app, {build})"),
        Edit("client_app", load, f"model = submodel(msg, {build})", times),
    ]


def _reply() -> list[Edit]:
    """Return the edits of where most examples pack what they trained."""
    packed = r'^    content = RecordDict\(\{"arrays".*\n    return Message\(.*\)$'
    return [
        Edit(
            "client_app", packed, '    return reply(msg, model, metrics=metrics, num_examples=metrics["num-examples"])'
        ),
        Edit("client_app", r"^    model_record = .*\n"),
    ]


def _numpy_client(build: str) -> list[Edit]:
    """Return the edits of a ``NumPyClient`` that keeps its context."""
    imports = r"\g<0>\nfrom heterofl_flwr.classic import parameters_of, properties_of, submodel"
    answer = "    def get_properties(self, config):\n        return properties_of(self.context)\n\n"
    return [
        Edit("client_app", r"^import torch$", imports),
        Edit("client_app", r"^    def fit\(", rf"{answer}\g<0>"),
        Edit(
            "client_app",
            r"set_weights\(self\.net, parameters\)",
            f"self.net = submodel(parameters, config, {build})",
            2,
        ),
        Edit("client_app", r"get_weights\(self\.net\)", "parameters_of(self.net)"),
    ]


LOADED = r"model = \w+\(\)\n    model\.load_state_dict\(.*\)$"
"""Where most examples make a model and load what came."""


def _lenet() -> list[Edit]:
    """Return the edits that make the hidden widths of the small CNN follow a rate."""
    return [
        Edit("task", r"^import torch$", r"\g<0>\nfrom heterofl_flwr.core import width"),
        Edit("task", r"def __init__\(self\)", "def __init__(self, rate=1.0)"),
        Edit("task", r"Conv2d\((\d), 6,", r"Conv2d(\1, width(6, rate),"),
        Edit("task", r"Conv2d\(6, 16,", "Conv2d(width(6, rate), width(16, rate),"),
        Edit("task", r"Linear\(16 \* (\d) \* \d, 120\)", r"Linear(width(16, rate) * \1 * \1, width(120, rate))"),
        Edit("task", r"Linear\(120, 84\)", "Linear(width(120, rate), width(84, rate))"),
        Edit("task", r"Linear\(84, 10\)", "Linear(width(84, rate), 10)"),
    ]


def _flat() -> Edit:
    """Return the edit of a ``view`` with a plain number of features."""
    return Edit("task", r"x\.view\(-1, .*\)$", "x.flatten(1)")


EXAMPLES = (
    Example(
        name="quickstart-pytorch",
        package="pytorchexample",
        edits=[
            *_lenet(),
            _flat(),
            *_server("Net"),
            *_client("Net", LOADED),
            *_reply(),
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
            *_elastic(r"^def train\(", "elastic(Net(), torch.zeros(1, 1, 28, 28))"),
            Edit(
                "strategy",
                r"^from flwr\.serverapp\.strategy import FedAvg, Result$",
                "from flwr.serverapp.strategy import Result\nfrom heterofl_flwr import HeteroFL",
            ),
            Edit("strategy", r"\(FedAvg\)", "(HeteroFL)"),
            Edit("server_app", r"^(from pytorch_example\.task import )", r"\1build, "),
            Edit("server_app", r"net\.load_state_dict\(.*\(\)", r"\g<0>, strict=False"),
            # The classifier stays with its client, as it does in the example.
            Edit("server_app", r"CustomFedAvg\(\n", f'\\g<0>        build, "{MIX}", shared=["conv*", "fc1*"],\n'),
            Edit("client_app", r"^(from pytorch_example\.task import )Net", r"\1Net, build"),
            Edit("client_app", r"^    net\.fc2\.load_state_dict\(.*$", "    return state_dict"),
            Edit("client_app", r"^    (# Restore this client's pre|# \(no action|load_layer_weights).*\n", times=6),
            Edit(
                "client_app",
                r"^    save_layer_weights_to_state\(.*$",
                "    context.state[classification_head_name] = ArrayRecord(own_part(msg, model))",
            ),
            *_client("build", LOADED),
            Edit(
                "client_app",
                r"submodel\(msg, build\)",
                "submodel(msg, build, load_layer_weights_from_state(context.state, None))",
                times=2,
            ),
            Edit("client_app", r"(import answer_queries), ", r"\1, own_part, "),
            *_reply(),
        ],
    ),
    Example(
        name="quickstart-pytorch-lightning",
        package="pytorchlightning_example",
        rows=2000,
        needs=["pytorch_lightning"],
        edits=[
            Edit("task", r"^import torch$", r"\g<0>\nfrom heterofl_flwr.core import width"),
            Edit("task", r"def __init__\(self\)", "def __init__(self, rate=1.0)"),
            Edit("task", r"Linear\((.*), 64\)", r"Linear(\1, width(64, rate))", 2),
            Edit("task", r"Linear\(64, (.*)\),$", r"Linear(width(64, rate), \1),", 2),
            *_server("LitAutoEncoder"),
            *_client("LitAutoEncoder", LOADED),
            *_reply(),
        ],
    ),
    Example(
        name="quickstart-huggingface",
        package="huggingface_example",
        rows=1000,
        needs=["transformers", "evaluate"],
        config={"fraction-train": 1.0, "fraction-evaluate": 1.0},
        edits=[
            *_elastic(
                r"^def train_fn", 'elastic(get_model("prajjwal1/bert-tiny"), torch.ones(1, 8, dtype=torch.long))'
            ),
            *_server("build"),
            Edit("server_app", r"import get_model$", "import build, get_model"),
            Edit("client_app", r"import get_model, ", "import build, "),
            *_client("build", r"model = get_model\(model_name\)\n"),
            Edit("client_app", r"\n    # .*\n    arrays = msg.*\n    model\.load_state_dict\(.*$", times=2),
            Edit("client_app", r"^    model_record = .*\n", times=2),
            Edit("client_app", r"^    # Construct RecordDict.*\n    content = .*\n", times=2),
            Edit(
                "client_app",
                r'(metrics = MetricRecord\(\{"num-.*\n)    return .*$',
                r"\1    return reply(msg, model, num_examples=len(trainloader))",
            ),
            Edit(
                "client_app",
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
            *_lenet(),
            _flat(),
            Edit(
                "my_strategy",
                r"^from flwr\.server\.strategy import FedAvg$",
                "from heterofl_flwr.classic import HeteroFL",
            ),
            Edit("my_strategy", r"\(FedAvg\)", "(HeteroFL)"),
            Edit("server_app", r"strategy = CustomFedAvg\(\n", f'\\g<0>        Net, "{MIX}", num_rounds=num_rounds,\n'),
            Edit("client_app", r"^        self\.client_state = .*\n", r"        self.context = context\n\g<0>"),
            *_numpy_client("Net"),
        ],
    ),
    Example(
        name="opacus",
        package="opacus_fl",
        needs=["opacus", "tqdm"],
        rows=1000,
        edits=[
            *_lenet(),
            _flat(),
            *_server("Net"),
            *_client("Net", r"model = Net\(\)\.to\(device\)\n    model\.load_state_dict\(.*\)$"),
            Edit("client_app", r"model = submodel\(msg, Net\)", r"\g<0>.to(device)", 2),
            Edit("client_app", r"^    out_arrays = .*\n"),
            Edit(
                "client_app",
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
            *_elastic(r"^def load_data\(", "elastic(Net(), torch.zeros(1, 1, 28, 28))"),
            Edit("server_app", r"^from fl_dp_sa\.task import", r"\g<0> build,"),
            Edit("client_app", r"^from fl_dp_sa\.task import Net,", r"from fl_dp_sa.task import build,"),
            Edit("client_app", r"^from flwr\.client\.mod import .*\n"),
            Edit("client_app", r"^    mods=\[\n(.*_mod,\n)*    \],\n"),
            Edit("client_app", r"trainloader, testloader\) -> None:", "trainloader, testloader, context):"),
            Edit("client_app", r"^        self\.net = Net\(\)$", "        self.context = context"),
            Edit("client_app", r"Client\(trainloader, testloader\)", "Client(trainloader, testloader, context)"),
            *_numpy_client("build"),
            Edit(
                "server_app",
                r"^(from flwr\.server\.strategy import ).*FedAvg$",
                "from heterofl_flwr import Privacy\nfrom heterofl_flwr.classic import HeteroFL",
            ),
            Edit("server_app", r"(DefaultWorkflow), SecAggPlusWorkflow$", r"\1"),
            Edit(
                "server_app",
                r"strategy = FedAvg\(\n",
                f'strategy = HeteroFL(\n        build, "{MIX}", num_rounds=3,\n'
                '        privacy=Privacy(clip=context.run_config["clipping-norm"], '
                'noise=context.run_config["noise-multiplier"]),\n',
            ),
            Edit("server_app", r"^        min_fit_clients=.*\n"),
            Edit("server_app", r"^    noise_multiplier = .*\n    clipping_norm = .*\n"),
            Edit("server_app", r"^    strategy = DifferentialPrivacy\w+\(\n(        .*\n)*    \)\n"),
            Edit("server_app", r"DefaultWorkflow\(\n(        .*\n)*    \)$", "DefaultWorkflow()"),
        ],
    ),
    Example(
        name="embedded-devices",
        package="embeddedexample",
        node_config={"dataset-path": "datasets/fashionmnist_part_{number}"},
        prepare=["generate_dataset.py", "--num-supernodes", "10"],
        edits=[
            *_lenet(),
            _flat(),
            *_server("Net"),
            *_client("Net", LOADED),
            *_reply(),
        ],
    ),
    Example(
        name="flowertune-vit",
        package="vitexample",
        rows=1000,
        remark="all parameters travel; only the head is trained, as before",
        edits=[
            *_elastic(r"^def trainer\(", "elastic(get_model(102), torch.zeros(1, 3, 224, 224))"),
            *_server("build"),
            Edit("server_app", r"^(from vitexample\.task import )", r"\1build, "),
            Edit("server_app", r"^ +finetune_layers = .*\n", times=2),
            Edit("server_app", r"finetune_layers\.", "model.", 2),
            Edit("client_app", r"^    get_model,$", "    build,"),
            *_client(
                "build",
                r"model = get_model\(num_classes\)\n    finetune_layers = .*\n"
                r"    finetune_layers\.load_state_dict\(\n.*\n    \)$",
                times=1,
            ),
            *_reply(),
        ],
    ),
)
