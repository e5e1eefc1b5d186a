"""HeteroFL as a strategy of Flower's Message API."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from heterofl_flwr import messages, packing
from heterofl_flwr.core.counting_mean import Aggregator, Weights
from heterofl_flwr.core.exchanged import exchanged_dtype
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.plan import ALL
from heterofl_flwr.core.reply_checks import LabelRule
from heterofl_flwr.core.robust import Robust
from heterofl_flwr.core.slice_rules import SliceRule, window_number
from heterofl_flwr.errors import SILENT, ConfigError, Fault, HeteroFLError, RoundError, check_count, name_faults
from heterofl_flwr.exchange import Budget, converse, crosses_superlink, exchange, read_each
from heterofl_flwr.federation.engine import QUERY_SECONDS, Engine, EngineView
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.limits import Limits, MinReplies
from heterofl_flwr.federation.options import Assignment, Averaging, Options, Sampling, Schedule, Transfer
from heterofl_flwr.federation.records import RoundCallback, host_log
from heterofl_flwr.federation.round import Round, TrainReply, check_open
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.chain import OpenMean
from heterofl_flwr.stages.compress import Upload
from heterofl_flwr.stages.privacy import Privacy
from heterofl_flwr.stages.stage import Said, Stage
from heterofl_flwr.strategies.arguments import MetricsFn, RecordOptions, explain_unknown
from heterofl_flwr.strategies.instructions import Slices, available_nodes, client_config, instruction
from heterofl_flwr.strategies.read_replies import (
    as_flower_error,
    list_metrics,
    read_metrics,
    read_moments,
    read_train_reply,
)
from heterofl_flwr.strategies.rounds import EvaluateFn, Rounds
from heterofl_flwr.superlink import guard

BESIDE_BYTES = 1 << 20
"""Of a reply, for everything that is not parameters: metrics, labels, moments."""

NAME_BYTES = 2048
"""Of a reply, for each parameter: its name, its shape, how Flower packs it."""

MOMENTS_SHARE = 0.5
"""Of the time that is left of a round, for moments; the rest is for the evaluation."""


class HeteroFL(EngineView, Strategy):
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
        asked for by ``auto``; give ``SimulatedDevices`` a number or a share, too.
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
    labels : "sent" | "inferred" | "none"
        Which of these rows of a reply count: those of the classes that the client names (``sent``), those that it
        trained (``inferred``), or all (``none``).
    fidelity : Fidelity
        Which of the paper's quirks to keep.
    robust : Robust | None
        What keeps a minority of hostile clients from moving the model far: the mean of each entry is a trimmed mean
        or a median. It goes with ``weights="equal"``, and not with noise. None for the counting mean.
    aggregator : Callable[..., Aggregator]
        What combines the replies of a round: ``Aggregator``, the counting mean; for LoRA adapters of unequal rank
        ``ProductAggregator`` of ``heterofl_flwr.adapters``; or your own subclass of ``Aggregator``. It is called as
        ``Aggregator`` is, once a round. Another than ``Aggregator`` goes neither with ``robust`` nor with noise.
    stages : Sequence[Stage]
        Further stages of the chain, in their order: a server optimiser, ``Momentum``, ``Adam``, ``Yogi`` or
        ``Adagrad``; ``MovingAverage``; or your own ``Stage``. One serves one strategy, as it keeps what it needs from
        round to round.
    limits, privacy, evaluation : Limits, Privacy, Evaluation
        Groups of further options.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : Callable[[list[RecordDict], str], MetricRecord] | None
        As in ``FedAvg``: from what clients replied, and ``weighted_by_key``, to metrics. Records of parameters are left
        out, for they are dropped as soon as they are added up, and so are replies of clients that evaluate a smaller
        rate's model alone. None: the means, weighted by examples.
    weighted_by_key : str
        As in ``FedAvg``: the metric by which means are weighted, and parameters too with ``weights="examples"``.
    arrayrecord_key, configrecord_key : str
        As in ``FedAvg``: the names of the records of parameters and of the config in instructions.
    callbacks : Sequence[RoundCallback]
        Called after each round.

    Examples
    --------
    ::

        strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", fraction_train=0.1)
        result = strategy.start(grid, num_rounds=20)
    """

    _train_kind: str = MessageType.TRAIN

    @explain_unknown(
        {
            "fraction_fit": "use fraction_train",
            "min_fit_clients": "use min_train_nodes",
            "min_evaluate_clients": "use min_evaluate_nodes",
            "min_available_clients": "use min_available_nodes",
            "fit_metrics_aggregation_fn": "use train_metrics_aggr_fn",
            "evaluate_metrics_aggregation_fn": "use evaluate_metrics_aggr_fn",
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
        aggregator: OpenMean = Aggregator,
        stages: Sequence[Stage] = (),
        limits: Limits = Limits(),
        privacy: Privacy = Privacy(),
        evaluation: Evaluation = Evaluation(),
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        weighted_by_key: str = messages.NUM_EXAMPLES,
        arrayrecord_key: str = messages.ARRAYS,
        configrecord_key: str = messages.CONFIG,
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        self.records = RecordOptions(
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
        )
        options = Options(
            sampling=Sampling(
                fraction_train=fraction_train,
                fraction_evaluate=fraction_evaluate,
                min_train_nodes=min_train_nodes,
                min_evaluate_nodes=min_evaluate_nodes,
                min_available_nodes=min_available_nodes,
                spare=spare,
                min_replies=min_replies,
                wait=wait,
            ),
            transfer=Transfer(
                slice_rule=slice_rule,
                roll_by=roll_by,
                shared=shared,
                upload=upload,
                learning_rate=learning_rate,
                proximal_mu=proximal_mu,
            ),
            averaging=Averaging(
                weights=weights,
                label_rows=label_rows,
                labels=labels,
                fidelity=fidelity,
                robust=robust,
                aggregator=aggregator,
                stages=stages,
            ),
            limits=limits,
            privacy=privacy,
            evaluation=evaluation,
        )
        whole = Mix.parse(mix).with_global_rate(global_rate)
        federation = Federation(build=build, mix=whole, assignment=assignment, seed=seed, options=options)
        self.engine = Engine(federation, counts_examples=weighted_by_key == messages.NUM_EXAMPLES)
        self.callbacks = tuple(callbacks)
        self._timeout = 3600.0
        self._round: Round | None = None
        self._evaluation: EvaluationRound | None = None
        self._sent: list[Message] = []
        self._grid: Grid  # of the round
        self._replied: dict[int, RecordDict] = {}
        self._heard: set[str] = set()  # the messages to which the grid brought replies
        self.budget: Budget | None = None  # of the round, while ``start`` runs

    def evaluated_arrays(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the parameters that are evaluated and kept, from those that are trained; mostly the same."""
        state = packing.read_tensors(arrays)
        found = self.engine.chain.evaluated(state)
        return arrays if found is state else ArrayRecord(found)

    @property
    def prints_rounds(self) -> bool:
        """Whether a callback shows the rounds."""
        return any(callback.prints_rounds for callback in self.callbacks)

    def moment_tensors(self) -> dict[str, Tensor]:
        """Return the moments of the last evaluation, by rate and layer."""
        return packing.moment_tensors(self.moments)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        first_round: int = 1,
    ) -> Result:
        """Run the rounds; as Flower's own ``start``, with two additions.

        ``initial_arrays`` default to a freshly built global model. A run that stopped goes on with ``first_round=k``,
        the arrays it had after round k - 1 (``Progress.state``) and, where stages keep something from round to round,
        ``engine.chain.load(progress.stages)`` before it. One that has done all rounds has nothing left to do but to
        call its callbacks.
        From round 1 a strategy begins anew, even if it ran before. As all evaluation, ``evaluate_fn`` is called every
        ``evaluation.every`` rounds; it also sees the initial arrays, as round 0. With ``shared`` it gets the shared
        parameters alone, from round 1 on whatever the initial arrays hold: the others are each client's own. Load them
        with ``strict=False``, or let the clients evaluate, each of which has a whole model.
        """
        check_count("num_rounds", num_rounds, 0)
        check_count("first_round", first_round, 1)
        if first_round > num_rounds + 1:
            raise ConfigError(f"first_round is {first_round}; expected 1 to one after the last round, {num_rounds}")
        if initial_arrays is None and first_round > 1:
            raise ConfigError(
                f"first_round is {first_round} without initial_arrays, so it would begin with a fresh model; give "
                f"those that the run had after round {first_round - 1}"
            )
        if initial_arrays is not None and not isinstance(initial_arrays, ArrayRecord):
            raise ConfigError(
                f"initial_arrays is of type {type(initial_arrays).__name__}; expected an ArrayRecord, such as "
                f"ArrayRecord(model.state_dict())"
            )
        configs = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        for config in configs:
            messages.check_own_keys(config)
        self.summary()
        self.engine.num_rounds, self._timeout = num_rounds, timeout
        if first_round == 1:
            self.engine.reset()
            self.engine.chain.load({})
        if initial_arrays is None:
            initial_arrays = packing.move_to_record(self.federation.initial_state())
        result = Result(arrays=initial_arrays)
        del initial_arrays  # else this frame would keep them to the end of the run
        guarded = guard(grid, self.largest_reply)
        Rounds(self, guarded, result, first_round, num_rounds, timeout, configs, evaluate_fn).run()
        self.budget = None
        return result

    def largest_reply(self, message: Message) -> int:
        """Return how many bytes the reply to a message may have."""
        plan = self.federation.plan(self.federation.mix.global_rate)
        if message.metadata.message_type.startswith(MessageType.TRAIN) and self._round is not None:
            own = self._round.slices.get(message.metadata.dst_node_id)
            plan = own.plan if own else plan
        entry = max((exchanged_dtype(own).itemsize for own in self.federation.model.parameters()), default=0)
        return plan.parameters * entry + len(plan.axes) * NAME_BYTES + BESIDE_BYTES

    @as_flower_error()
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client of the round, with its slice and its rate."""
        messages.check_own_keys(config)
        slices = Slices(self.federation, arrays)
        nodes = available_nodes(grid, self.engine, server_round, self._timeout)
        self._round = current = Round(self.engine, server_round, nodes, slices.state, remote=self._is_remote(grid))
        self._sent, self._replied, self._grid = [], {}, grid
        faults: dict[int, Fault] = {}
        seconds = min(QUERY_SECONDS, self._timeout)
        try:
            told = converse(current.before(), lambda asked: self._ask_stages(asked, faults, seconds))
        except RoundError as error:
            named = {node_id: fault.reason for node_id, fault in faults.items()}
            raise RoundError(f"{error}; {name_faults('node', named)}" if named else str(error)) from error
        for node_id, own in current.slices.items():
            if node_id not in told:
                current.refuse(node_id, faults.get(node_id, Fault(f"{SILENT} to what was asked before training")))
                continue
            record = slices.record(own.plan)
            self.log.note_sent(own.rate, packing.count_bytes(record))
            full = {**config, **self._train_config(server_round, node_id, own.rate), **told[node_id]}
            self._sent.append(instruction(self._train_kind, node_id, record, full))
        self.records.rename_records(self._sent)
        # Flower may go through what it gets more than once, so this is a list, and not the one kept here.
        return list(self._sent)

    def _train_config(self, server_round: int, node_id: int, rate: float) -> dict[str, object]:
        """Return what a client needs to know to train."""
        inside = {messages.RATES: self.federation.rates_inside(rate)}
        return {**client_config(self.engine, server_round, node_id, rate), **inside, **self.engine.chain.instruction()}

    def _ask_stages(self, asked: Mapping[int, Said], faults: dict[int, Fault], seconds: float) -> dict[int, Said]:
        """Ask clients what stages want to know; return what they say, and note why others do not."""
        answers: dict[int, Said] = {}
        beside = {**self.engine.chain.instruction(), messages.SERVER_ROUND: check_open(self._round).server_round}
        sent = [
            Message(
                RecordDict({messages.CONFIG: messages.new_config({**beside, **said})}), node_id, messages.QUERY_STAGES
            )
            for node_id, said in asked.items()
        ]

        def read(node_id: int, reply: Message) -> None:
            answers[node_id] = messages.read_config(reply, f"node {node_id}")

        def note(node_id: int, fault: Fault) -> None:
            cause = f"; {messages.NOT_CONVERTED}" if fault.kind == "no handler" else ""
            faults[node_id] = replace(fault, reason=f"{fault.reason}{cause}")

        replies = self._grid.send_and_receive(sent, timeout=seconds) if sent else []
        read_each(sent, replies, read, note, HeteroFLError)
        return answers

    def exchange(self, grid: Grid, sent: list[Message], timeout: float) -> Iterable[Message]:
        """Send the messages of ``configure_train`` and return the replies; with ``spare``, as soon as enough came."""
        if self.options.sampling.spare and self._round is not None:
            return exchange(grid, sent, timeout=timeout, enough=self._round.needed, in_order=False)
        return grid.send_and_receive(sent, timeout=timeout)

    @as_flower_error()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies one by one, in the order of the messages, and return the new global model."""
        current = check_open(self._round)
        function = self.records.train_metrics_aggr_fn

        def read(node_id: int, reply: Message) -> None:
            current.add(node_id, self._read_train_reply(node_id, reply, current))
            self._keep_records(function, node_id, reply)

        read_each(self._sent, replies, read, self._refusal(current))
        self._sent = []
        converse(current.after(), lambda asked: self._ask_stages(asked, {}, self._seconds_left(MOMENTS_SHARE)))
        new = current.close()
        self._round = None
        if not self.prints_rounds:
            host_log.info("%s", self.log.line())
        return packing.move_to_record(new), self._aggregated(function, current.answers, self.log.train)

    def _read_train_reply(self, node_id: int, reply: Message, current: Round) -> TrainReply:
        """Return what a reply holds; refuse it if anything is missing or of another type."""
        plan, key = current.slices[node_id].plan, self.records.weighted_by_key
        return read_train_reply(reply, plan, self.options.limits, f"node {node_id}", key)

    @as_flower_error()
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client that evaluates, with the model and its static batch norm moments."""
        self._sent, self._evaluation, self._round = [], None, None
        evaluation = self.options.evaluation
        if not self.options.sampling.fraction_evaluate or not evaluation.due(server_round, self.engine.num_rounds):
            return []
        messages.check_own_keys(config)
        nodes = available_nodes(grid, self.engine, server_round, self._seconds_left(MOMENTS_SHARE))
        self._evaluation = current = EvaluationRound(self.engine, server_round, nodes)
        rule, window = self.federation.evaluated_rule, window_number(server_round, self.options.transfer.roll_by)
        asked = {} if rule == "prefix" else {messages.SLICE_RULE: rule, messages.WINDOW: window}
        slices = Slices(self.federation, self.evaluated_arrays(arrays))

        def ask(kind: str, node_id: int, more: Mapping[str, object]) -> Message:
            rates = current.rates[node_id]
            record = slices.record(self.federation.plan(rates[0]))
            full = {**config, **client_config(self.engine, server_round, node_id, rates[0]), **more}
            full |= asked if rates[0] == self.federation.mix.global_rate else {}
            return instruction(kind, node_id, record, {**full, messages.RATES: list(rates)})

        self._collect_moments(current, grid, ask)

        @cache
        def pack(rates: tuple[float, ...]) -> ArrayRecord:
            return packing.pack_moments({rate: self.engine.moments[rate] for rate in rates})

        for node_id, rates in current.rates.items():
            message = ask(MessageType.EVALUATE, node_id, {})
            if self.engine.moments:
                message.content[messages.MOMENTS] = pack(rates)
            self._sent.append(message)
        self.records.rename_records(self._sent)
        return list(self._sent)

    def _is_remote(self, grid: Grid) -> bool:
        """Whether clients are on other machines."""
        return crosses_superlink(grid)

    def _collect_moments(
        self, current: EvaluationRound, grid: Grid, ask: Callable[[str, int, Mapping[str, object]], Message]
    ) -> None:
        """Query for static batch norm moments those clients whose app may have a handler for it, if any are needed."""
        norms = current.open_moments(remote=self._is_remote(grid))
        if not norms:
            return
        kind = {messages.MOMENTS_KIND: self.federation.fidelity.moments}
        sent = [ask(messages.QUERY_MOMENTS, node_id, kind) for node_id in norms]

        def read(node_id: int, reply: Message) -> None:
            # All are read before any is added, so an answer that does not fit changes nothing.
            current.add_moments(node_id, read_moments(reply, norms[node_id], f"node {node_id}"))

        replies = grid.send_and_receive(sent, timeout=self._seconds_left(MOMENTS_SHARE))
        replies = self.hear(replies, "sent moments", len(sent))
        read_each(sent, replies, read, current.refuse_moments, HeteroFLError)
        current.close_moments()

    @as_flower_error()
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over the clients, weighted by examples, and the accuracy of the worst client."""
        current, function = self._evaluation, self.records.evaluate_metrics_aggr_fn
        if current is None:
            return None
        self._replied = {}

        def read(node_id: int, reply: Message) -> None:
            key = self.records.weighted_by_key
            current.answers[node_id] = read_metrics(reply, self.options.limits, f"node {node_id}", key)
            self._keep_records(function, node_id, reply)

        read_each(self._sent, replies, read, self._refusal(current))
        self._sent, self._evaluation = [], None
        current.close()
        return self._aggregated(function, current.whole_answers(), self.log.evaluate) if current.answers else None

    def _seconds_left(self, share: float) -> float:
        """Return a share of the seconds that are left of the round; without ``start``, all that a round has."""
        return self._timeout if self.budget is None else self.budget.left(share)

    def open_exchange(self, sent: Sequence[Message]) -> None:
        """Leave out of the round whom a subclass sends nothing of what ``configure_train`` or the like returned."""
        self._heard = set()
        asked = {message.metadata.dst_node_id for message in sent}
        current = self._round or self._evaluation
        for message in self._sent:
            if current is not None and message.metadata.dst_node_id not in asked:
                current.leave_out(message.metadata.dst_node_id)
        self._sent = [message for message in self._sent if message.metadata.dst_node_id in asked]

    def hear(self, replies: Iterable[Message], what: str, asked: int) -> Iterator[Message]:
        """Yield the replies of a grid, noting which there were: a subclass may drop some of them."""
        done = 0
        for reply in replies:
            self._heard.add(reply.metadata.reply_to_message_id)
            done += 1  # noqa: SIM113 - enumerate would keep the reply
            for callback in self.callbacks:
                callback.on_reply(what, done, asked)
            yield reply
            del reply  # the consumer alone decides how long a reply lives

    def _refusal(self, current: Round | EvaluationRound) -> Callable[[int, Fault], None]:
        """Return what notes a fault; a client whose reply a subclass dropped has none, and is left out."""
        ids = {message.metadata.dst_node_id: message for message in self._sent}

        def refuse(node_id: int, fault: Fault) -> None:
            if fault.kind == "silent" and ids[node_id].metadata.message_id in self._heard:
                current.leave_out(node_id)
            else:
                current.refuse(node_id, fault)

        return refuse

    def _keep_records(self, function: MetricsFn | None, node_id: int, reply: Message) -> None:
        """Keep what a metrics function is to see of a reply: all records but those of parameters."""
        if function is None:
            self.engine.warn_of_lists(list_metrics(reply))
            return
        self._replied[node_id] = RecordDict(
            {name: record for name, record in reply.content.items() if not isinstance(record, ArrayRecord)}
        )

    def _aggregated(
        self, function: MetricsFn | None, node_ids: Collection[int], means: dict[str, float]
    ) -> MetricRecord:
        """Return what a metrics function computes from some clients' replies, and note it; without one, the means."""
        if function is None or not node_ids:
            return MetricRecord(dict(means))
        found = function([self._replied[node_id] for node_id in node_ids], self.records.weighted_by_key)
        self.log.note_computed(means, found)
        return found
