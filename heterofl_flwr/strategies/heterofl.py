"""HeteroFL as a strategy of Flower's Message API: the class and its arguments."""

from collections.abc import Sequence

from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.global_model import GlobalModel
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.options import Averaging, Evaluation, Options, Slicing, Training
from heterofl_flwr.federation.sampling import Participation, Sampling
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.asynchronous import Buffered, check_levels
from heterofl_flwr.stages.privacy_accountant import Privacy
from heterofl_flwr.stages.server_stage import ServerStage
from heterofl_flwr.strategies.arguments import FEDAVG, explain_unknown
from heterofl_flwr.strategies.metrics_function import MetricsFn
from heterofl_flwr.strategies.start import FederationStrategy


class HeteroFL(FederationStrategy):
    """Train one global model on clients of unequal size. The client side is in ``heterofl_flwr.client``.

    ``start`` runs the rounds, as Flower's ``Strategy.start``. It also takes ``resume``, the state of a stopped run, and
    ``should_stop(server_round, result)``, which returns True to end the run.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        Your function from a rate to a new model. ``heterofl_flwr.core.width`` computes the width of a layer at a
        rate.
    mix : str | Mix
        The rates of the clients and the share of clients at each rate, such as ``"a1-b1-c1-d1-e1"`` or
        ``"1.0x1-0.3x9"``.
    fraction_train, fraction_evaluate : float
        Fraction of the clients that take part in a round, rounded up. With ``fraction_evaluate=0.0`` no client
        evaluates or measures batch norm moments.
    min_train_nodes, min_evaluate_nodes : int | None
        If a minimum is set, ``max(int(fraction * clients), minimum)`` clients take part, as in ``FedAvg``, and a
        round waits for at least ``minimum`` nodes.
    min_available_nodes : int
        Number of nodes that a round waits for.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : Callable[[list[RecordDict], str], MetricRecord] | None
        As in ``FedAvg``: a function that returns the metrics of a round. Its arguments are the records of the
        replies, without parameters, and the key of the number of examples. Replies of clients that evaluated only a
        smaller model are left out. By default, metrics are averaged, weighted by examples; lists are left out.
    seed : int
        Random seed. Every random draw is a function of the seed, the round and the client's partition.
    slicing : Slicing
        The slice of each client: assignment of rates, rate of the global model, moving slices, shared parameters.
    sampling : Sampling
        Spare clients, the minimum number of replies of a round, and the time to wait for nodes.
    training : Training
        Learning rate of the clients, FedProx, and the encoding of replies.
    averaging : Averaging
        The mean of the replies: its weights, its kind (counting, robust, product), and the classifier rows that
        are averaged.
    stages : Sequence[ServerStage]
        Stages that change the replies (last stage first) or their mean (first stage first): a server optimiser
        (``Momentum``, ``Adam``, ``Yogi``, ``Adagrad``), ``MovingAverage``, ``FedDyn``, ``Scaffold``, or your
        ``ServerStage``. Do not use an instance in two strategies.
    limits : Limits
        Bounds on the replies of clients, and the server's tables of levels and partitions by node.
    privacy : Privacy
        Clipping and noise.
    evaluation : Evaluation
        The rounds with an evaluation, and the models that clients evaluate.
    asynchronous : Buffered
        With ``size`` above 0, training is asynchronous: after every ``size`` replies the model is updated. Each
        update counts as a round. When a client has replied, another client begins at once.
    callbacks : Sequence[RoundCallback]
        Callbacks, called at the start and end of the run, after each reply and after each round.

    Attributes
    ----------
    log : RoundRecord
        The record of the latest round.
    moments : Mapping[float, Moments]
        Batch norm moments of the latest evaluation, by rate.

    Examples
    --------
    ::

        strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", fraction_train=0.1, training=Training(learning_rate=0.1))
        result = strategy.start(grid, num_rounds=20)
    """

    @explain_unknown
    def __init__(
        self,
        build: Build,
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        fraction_train: float = FEDAVG.fraction_train,
        fraction_evaluate: float = FEDAVG.fraction_evaluate,
        min_train_nodes: int | None = FEDAVG.min_train_nodes,
        min_evaluate_nodes: int | None = FEDAVG.min_evaluate_nodes,
        min_available_nodes: int = FEDAVG.min_available_nodes,
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        seed: int = 0,
        slicing: Slicing = Slicing(),
        sampling: Sampling = Sampling(),
        training: Training = Training(),
        averaging: Averaging = Averaging(),
        stages: Sequence[ServerStage] = (),
        limits: Limits = Limits(),
        privacy: Privacy = Privacy(),
        evaluation: Evaluation = Evaluation(),
        asynchronous: Buffered = Buffered(),
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        options = Options(
            sampling=Participation.of(
                sampling,
                fraction_train=fraction_train,
                fraction_evaluate=fraction_evaluate,
                min_train_nodes=min_train_nodes,
                min_evaluate_nodes=min_evaluate_nodes,
                min_available_nodes=min_available_nodes,
            ),
            slicing=slicing,
            training=training,
            averaging=averaging,
            stages=stages,
            limits=limits,
            privacy=privacy,
            evaluation=evaluation,
            asynchronous=asynchronous,
        )
        whole_mix = Mix.parse(mix).with_global_rate(options.slicing.global_rate)
        model = GlobalModel(build, whole_mix, options, seed)
        if asynchronous.size:
            check_levels(asynchronous, [model.plan(rate).without(model.untrained(rate)) for rate in whole_mix.rates])
        federation = Federation(model)
        super().__init__(federation, train_metrics_aggr_fn, evaluate_metrics_aggr_fn, callbacks)
