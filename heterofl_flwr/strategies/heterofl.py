"""HeteroFL as a strategy of Flower's Message API."""

from collections.abc import Sequence

from heterofl_flwr.common.options import pick
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.moving_slices import SliceRule
from heterofl_flwr.core.reply_checks import LabelRule
from heterofl_flwr.core.robust import Robust
from heterofl_flwr.core.slice_plan import ALL
from heterofl_flwr.federation.admission import Limits
from heterofl_flwr.federation.architecture import GlobalModel
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.options import Assignment, Averaging, Options, Schedule, Transfer
from heterofl_flwr.federation.records import RoundCallback
from heterofl_flwr.federation.sampling import MinReplies, Sampling
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.asynchronous import Buffered
from heterofl_flwr.stages.compress import Upload
from heterofl_flwr.stages.privacy import Privacy
from heterofl_flwr.stages.server_stage import ServerStage
from heterofl_flwr.strategies.arguments import CLASSIC, explain_unknown
from heterofl_flwr.strategies.base import FederationStrategy
from heterofl_flwr.strategies.hooks import MetricsFn


class HeteroFL(FederationStrategy):
    """Train one global model over clients of unequal size; the client side is in ``heterofl_flwr.client``.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the model at that rate: your own function. ``heterofl_flwr.core.width`` gives the widths.
    mix : str | Mix
        The rates of the clients and their shares, such as ``"a1-b1-c1-d1-e1"`` or ``"1.0x1-0.3x9"``.
    assignment : "fix" | "dynamic"
        Whether a client's rate stays or is drawn anew each round.
    global_rate : str | float | None
        Level or rate of the global model; None for the largest of the mix. A larger one needs a ``slice_rule`` that
        moves.
    seed : int
        Every draw is a function of it, the round and the client's partition.
    fraction_train, fraction_evaluate : float
        ``max(fraction * clients, 1)`` clients take part. With ``fraction_evaluate=0.0`` no client is asked to evaluate,
        nor for what an evaluation needs.
    min_train_nodes, min_evaluate_nodes : int | None
        Where given, ``max(int(fraction * clients), min_train_nodes)`` take part, as in ``FedAvg``, and a round waits
        for at least this many nodes.
    min_available_nodes : int
        A round waits for this many nodes.
    spare : float
        So many more clients, as a share of those, are asked to train; the round waits only until enough have answered.
    min_replies : int | float | "auto"
        With fewer good replies than this a round fails: a number of them, a share below 1 of the clients that the round
        needs (all that are asked but the spare ones), or ``auto`` for half of these. What simulated devices lose is not
        asked for by ``auto``.
    wait : float
        For how many seconds a round waits for nodes before it fails.
    slice_rule : SliceRule
        Which slices clients get: HeteroFL's ``prefix``; FedRolex's window, which moves on by ``roll_by`` entries each
        round (``rolling``); or random ones, drawn each round for each rate (``random-level``) or for each client
        (``random-client``).
    roll_by : int
        By how many entries a rolling slice moves on.
    shared : Sequence[str]
        Patterns (``fnmatch``) of the parameters that travel and are averaged, by default all. The others stay with
        their clients: LG-FedAvg, or Standalone where none travel. Each client then evaluates a model of its own.
    upload : "float32" | "float16" | "int8"
        How clients send what they trained: as it is (``float32``), or only what it changed by, in two bytes
        (``float16``) or in one (``int8``).
    learning_rate : Callable[[int], float] | None
        From the round to the learning rate that clients are sent; see ``multi_step``.
    proximal_mu : float | None
        The weight of FedProx's pull towards the parameters that were received, which clients are sent, as in
        ``FedProx``, and their loops apply; None sends nothing.
    weights : "equal" | "examples"
        What a client counts in the mean: once, as in HeteroFL (``equal``), or by its examples, as in FedAvg
        (``examples``).
    label_rows : Sequence[str] | None
        Parameters whose rows belong to classes; None finds the classifier (``find_label_rows``).
    labels : "sent" | "none"
        Which of these rows of a reply count: those of the classes that the client names (``sent``), or all (``none``).
    fidelity : Fidelity
        Which of the paper's quirks to keep.
    robust : Robust | None
        What keeps a minority of hostile clients from moving the model far: the mean of each entry is a trimmed mean
        or a median. It goes with ``weights="equal"``, and not with noise. None for the counting mean.
    aggregator : Callable[[Mapping[str, Tensor]], Aggregator]
        Makes the aggregator of a round from the global state: ``CountingMean``; for LoRA adapters of unequal rank
        ``ProductMean`` of ``heterofl_flwr.adapters``; or your own class with the methods of ``Aggregator``. Another
        than ``CountingMean`` goes neither with ``robust`` nor with noise.
    stages : Sequence[ServerStage]
        Further stages of the chain, in their order: a server optimiser, ``Momentum``, ``Adam``, ``Yogi`` or
        ``Adagrad``; ``MovingAverage``, ``FedDyn``, ``Scaffold``; or your own ``ServerStage``. One object serves one
        strategy, as it has state.
    limits, privacy, evaluation : Limits, Privacy, Evaluation
        Groups of further options.
    asynchronous : Buffered
        With a ``size``, rounds do not wait: the model takes a step whenever so many clients have answered, and a client
        that has answered is replaced by another at once. A round is then such a step.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : Callable[[list[RecordDict], str], MetricRecord] | None
        As in ``FedAvg``: from what clients replied, and the key of the number of examples, to metrics. Records of
        parameters are left out, for they are dropped as soon as they are added up, and so are replies of clients that
        evaluate a smaller rate's model alone. None: the means, weighted by examples.
    callbacks : Sequence[RoundCallback]
        Called after each round.

    Examples
    --------
    ::

        strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", fraction_train=0.1)
        result = strategy.start(grid, num_rounds=20)
    """

    @explain_unknown(
        {
            **{name: f"use {own}" for name, own in CLASSIC.items()},
            "accept_failures": "use min_replies",
            "initial_parameters": "use start(initial_arrays=...)",
            "on_fit_config_fn": "use start(train_config=...)",
            "on_evaluate_config_fn": "use start(evaluate_config=...)",
            **{name: f"use start({name}=...)" for name in ("evaluate_fn", "num_rounds", "initial_arrays")},
        }
    )
    def __init__(
        self,
        build: Build,
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        assignment: Assignment = "fix",
        global_rate: str | float | None = None,
        seed: int = 0,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int | None = None,
        min_evaluate_nodes: int | None = None,
        min_available_nodes: int = 2,
        spare: float = 0.0,
        min_replies: MinReplies = "auto",
        wait: float = 60.0,
        slice_rule: SliceRule = "prefix",
        roll_by: int = 1,
        shared: Sequence[str] = ALL,
        upload: Upload = "float32",
        learning_rate: Schedule | None = None,
        proximal_mu: float | None = None,
        weights: Weights = "equal",
        label_rows: Sequence[str] | None = None,
        labels: LabelRule = "sent",
        fidelity: Fidelity = Fidelity(),
        robust: Robust | None = None,
        aggregator: OpenAggregator = CountingMean,
        stages: Sequence[ServerStage] = (),
        limits: Limits = Limits(),
        privacy: Privacy = Privacy(),
        evaluation: Evaluation = Evaluation(),
        asynchronous: Buffered = Buffered(),
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        given = locals()
        options = Options(
            sampling=pick(Sampling, given),
            transfer=pick(Transfer, given),
            averaging=pick(Averaging, given),
            limits=limits,
            privacy=privacy,
            evaluation=evaluation,
            asynchronous=asynchronous,
        )
        architecture = GlobalModel(build, Mix.parse(mix).with_global_rate(global_rate), options, seed)
        federation = Federation(architecture, assignment)
        super().__init__(federation, train_metrics_aggr_fn, evaluate_metrics_aggr_fn, callbacks)
