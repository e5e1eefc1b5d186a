"""Flower's examples, and the small edits that convert each of them: where to find a place, and what to write there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial


@dataclass(frozen=True, slots=True)
class Edit:
    """Write ``new`` in the places of a file that match."""

    file: str  # the module in the app's package, such as client_app
    pattern: str  # a regular expression, in which `^` and `$` are ends of lines
    new: str = ""  # what to write there, with `\1` and so on for the groups of the pattern; nothing deletes
    times: int = 1  # in how many places


MIX = "a1-b1-c1-d1-e1"

Config = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One of Flower's examples, what converts it, and how it is run."""

    name: str  # its folder under `examples/`
    package: str  # the folder of its modules
    edits: Sequence[Edit]
    api: str = "message"  # which of Flower's interfaces it uses: `message` or `classic`
    needs: Sequence[str] = ()  # modules that it imports beside those of this project
    nodes: int = 10
    rows: int = 5000  # of the training set; a fifth as many of the test set
    config: Config = field(default_factory=dict)  # settings of the run that differ from those in `pyproject.toml`
    # settings of each node, in which `{number}` stands for 1, 2 and so on
    node_config: dict[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()  # a script of the app that makes its data, and its arguments
    personal: bool = False  # whether clients keep layers of their own, so that only their evaluation counts
    remark: str = ""  # what the conversion changes beside sizes

    @property
    def short(self) -> str:
        """The first folder of the name."""
        return self.name.partition("/")[0]


_task, _server, _client = (partial(Edit, file) for file in ("task", "server_app", "client_app"))

LOADED = r"model = \w+\(\)\n    model\.load_state_dict\(.*\)$"
"""Where most examples make a model and load what came."""

_FEDAVG = r"^from flwr\.serverapp\.strategy import FedAvg$"
_IMPORTS = r"\g<0>\nfrom heterofl_flwr.client import answer_queries, reply, submodel"
_CLASSIC_IMPORTS = r"\g<0>\nfrom heterofl_flwr.classic import parameters_of, properties_of, submodel"
_PROPERTIES = "    def get_properties(self, config):\n        return properties_of(self.context)\n\n"
_PACKED = r'^    content = RecordDict\(\{"arrays".*\n    return Message\(.*\)$'
_REPLY = '    return reply(msg, model, metrics=metrics, num_examples=metrics["num-examples"])'


def _elastic(before: str, build: str) -> list[Edit]:
    """Return the edits that let the model of a task be sliced by a trace."""
    return [
        _task(r"^import torch$", r"\g<0>\nfrom heterofl_flwr import elastic"),
        _task(before, rf"build = {build}\n\n\n\g<0>"),
    ]


def _strategy_and_client(build: str, load: str = LOADED, times: int = 2) -> list[Edit]:
    """Return the edits of a ServerApp that makes a ``FedAvg``, and of a ClientApp that makes and loads a model."""
    return [
        _server(_FEDAVG, "from heterofl_flwr import HeteroFL"),
        _server(r"\bFedAvg\(", f'HeteroFL({build}, "{MIX}", '),
        *_load(build, load, times),
    ]


def _load(build: str, load: str = LOADED, times: int = 2) -> list[Edit]:
    """Return the edits of a ClientApp; ``load`` finds where it makes a model and loads what came."""
    return [
        _client(r"^from flwr\.clientapp import ClientApp$", _IMPORTS),
        _client(r"^app = ClientApp\(\)$", rf"\g<0>\nanswer_queries(app, {build})"),
        _client(load, f"model = submodel(msg, {build})", times),
    ]


# Where most examples pack what they trained.
_PACK = [_client(_PACKED, _REPLY), _client(r"^    model_record = .*\n")]


def _numpy_client(build: str) -> list[Edit]:
    """Return the edits of a ``NumPyClient`` that keeps its context."""
    return [
        _client(r"^import torch$", _CLASSIC_IMPORTS),
        _client(r"^    def fit\(", rf"{_PROPERTIES}\g<0>"),
        _client(r"set_weights\(self\.net, parameters\)", f"self.net = submodel(parameters, config, {build})", 2),
        _client(r"get_weights\(self\.net\)", "parameters_of(self.net)"),
    ]


# The hidden widths of the small CNN follow a rate, and a `view` with a plain number of features becomes a `flatten`.
_LENET = [
    _task(r"^import torch$", r"\g<0>\nfrom heterofl_flwr.core import width"),
    _task(r"def __init__\(self\)", "def __init__(self, rate=1.0)"),
    _task(r"Conv2d\((\d), 6,", r"Conv2d(\1, width(6, rate),"),
    _task(r"Conv2d\(6, 16,", "Conv2d(width(6, rate), width(16, rate),"),
    _task(r"Linear\(16 \* (\d) \* \d, 120\)", r"Linear(width(16, rate) * \1 * \1, width(120, rate))"),
    _task(r"Linear\(120, 84\)", "Linear(width(120, rate), width(84, rate))"),
    _task(r"Linear\(84, 10\)", "Linear(width(84, rate), 10)"),
    _task(r"x\.view\(-1, .*\)$", "x.flatten(1)"),
]


_EXAMPLES = (
    Example(
        name="quickstart-pytorch",
        package="pytorchexample",
        edits=[*_LENET, *_strategy_and_client("Net"), *_PACK],
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
            _server(r"^(from pytorch_example\.task import )", r"\1build, "),
            _server(r"net\.load_state_dict\(.*\(\)", r"\g<0>, strict=False"),
            # The classifier stays with its client, as it does in the example.
            _server(r"CustomFedAvg\(\n", f'\\g<0>        build, "{MIX}", shared=["conv*", "fc1*"],\n'),
            _client(r"^(from pytorch_example\.task import )Net", r"\1Net, build"),
            _client(r"^    net\.fc2\.load_state_dict\(.*$", "    return state_dict"),
            _client(r"^    (# Restore this client's pre|# \(no action|load_layer_weights).*\n", times=6),
            _client(
                r"^    save_layer_weights_to_state\(.*$",
                "    context.state[classification_head_name] = ArrayRecord(own_part(msg, model))",
            ),
            *_load("build"),
            _client(
                r"submodel\(msg, build\)",
                "submodel(msg, build, load_layer_weights_from_state(context.state, None))",
                times=2,
            ),
            _client(r"(import answer_queries), ", r"\1, own_part, "),
            *_PACK,
        ],
    ),
    Example(
        name="quickstart-pytorch-lightning",
        package="pytorchlightning_example",
        rows=2000,
        needs=["pytorch_lightning"],
        edits=[
            *_LENET[:2],
            _task(r"Linear\((.*), 64\)", r"Linear(\1, width(64, rate))", 2),
            _task(r"Linear\(64, (.*)\),$", r"Linear(width(64, rate), \1),", 2),
            *_strategy_and_client("LitAutoEncoder"),
            *_PACK,
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
            _server(r"import get_model$", "import build, get_model"),
            _client(r"import get_model, ", "import build, "),
            *_strategy_and_client("build", r"model = get_model\(model_name\)\n"),
            _client(r"\n    # .*\n    arrays = msg.*\n    model\.load_state_dict\(.*$", times=2),
            _client(r"^    model_record = .*\n", times=2),
            _client(r"^    # Construct RecordDict.*\n    content = .*\n", times=2),
            _client(
                r'(metrics = MetricRecord\(\{"num-.*\n)    return .*$',
                r"\1    return reply(msg, model, num_examples=len(trainloader))",
            ),
            _client(
                r"^    return Message\(.*\)$", "    return reply(msg, num_examples=len(testloader), metrics=metrics)"
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
            *_LENET,
            Edit(
                "my_strategy",
                r"^from flwr\.server(\.strategy) import FedAvg$",
                "from heterofl_flwr.classic import HeteroFL",
            ),
            Edit("my_strategy", r"\(FedAvg\)", "(HeteroFL)"),
            _server(r"strategy = CustomFedAvg\(\n", f'\\g<0>        Net, "{MIX}", num_rounds=num_rounds,\n'),
            _client(r"^        self\.client_state = .*\n", r"        self.context = context\n\g<0>"),
            *_numpy_client("Net"),
        ],
    ),
    Example(
        name="opacus",
        package="opacus_fl",
        needs=["opacus", "tqdm"],
        rows=1000,
        edits=[
            *_LENET,
            *_strategy_and_client("Net", r"model = Net\(\)\.to\(device\)\n    model\.load_state_dict\(.*\)$"),
            _client(r"model = submodel\(msg, Net\)", r"\g<0>.to(device)", 2),
            _client(r"^    out_arrays = .*\n"),
            _client(
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
            _server(r"^from fl_dp_sa\.task import", r"\g<0> build,"),
            _client(r"^from fl_dp_sa\.task import Net,", r"from fl_dp_sa.task import build,"),
            _client(r"^from flwr\.client\.mod import .*\n"),
            _client(r"^    mods=\[\n(.*_mod,\n)*    \],\n"),
            _client(r"trainloader, testloader\) -> None:", "trainloader, testloader, context):"),
            _client(r"^        self\.net = Net\(\)$", "        self.context = context"),
            _client(r"Client\(trainloader, testloader\)", "Client(trainloader, testloader, context)"),
            *_numpy_client("build"),
            _server(
                r"^(from flwr\.server\.strategy import ).*FedAvg$",
                "from heterofl_flwr import Privacy\nfrom heterofl_flwr.classic import HeteroFL",
            ),
            _server(r"(DefaultWorkflow), SecAggPlusWorkflow$", r"\1"),
            _server(
                r"strategy = FedAvg\(\n",
                f'strategy = HeteroFL(\n        build, "{MIX}", num_rounds=3,\n'
                '        privacy=Privacy(clip=context.run_config["clipping-norm"], '
                'noise=context.run_config["noise-multiplier"]),\n',
            ),
            _server(r"^        min_fit_clients=.*\n"),
            _server(r"^    noise_multiplier = .*\n    clipping_norm = .*\n"),
            _server(r"^    strategy = DifferentialPrivacy\w+\(\n(        .*\n)*    \)\n"),
            _server(r"DefaultWorkflow\(\n(        .*\n)*    \)$", "DefaultWorkflow()"),
        ],
    ),
    Example(
        name="embedded-devices",
        package="embeddedexample",
        node_config={"dataset-path": "datasets/fashionmnist_part_{number}"},
        prepare=["generate_dataset.py", "--num-supernodes", "10"],
        edits=[*_LENET, *_strategy_and_client("Net"), *_PACK],
    ),
    Example(
        name="flowertune-vit",
        package="vitexample",
        rows=1000,
        remark="all parameters travel; only the head is trained, as before",
        edits=[
            *_elastic(r"^def trainer\(", "elastic(get_model(102), torch.zeros(1, 3, 224, 224))"),
            _server(r"^(from vitexample\.task import )", r"\1build, "),
            _server(r"^ +finetune_layers = .*\n", times=2),
            _server(r"finetune_layers\.", "model.", 2),
            _client(r"^    get_model,$", "    build,"),
            *_strategy_and_client(
                "build",
                r"model = get_model\(num_classes\)\n    finetune_layers = .*\n"
                r"    finetune_layers\.load_state_dict\(\n.*\n    \)$",
                times=1,
            ),
            *_PACK,
        ],
    ),
)
EXAMPLES = {example.short: example for example in _EXAMPLES}
"""By the first folder of their names."""
