"""How the server evaluates, which holds the test set in a simulation."""

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.task import Task
from heterofl_flwr.client import Build, load_parameters
from heterofl_flwr.core.seeds import derive
from heterofl_flwr.learn import evaluate
from heterofl_flwr.methods.families import with_families, within
from heterofl_flwr.methods.heterofl import HeteroFL
from heterofl_flwr.methods.hybrid import Hybrid
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.nn.threads import torch_threads


class CentralEvaluation:
    """The global model, or that of each family, on the whole test set."""

    def __init__(self, strategy: HeteroFL, task: Task) -> None:
        self._strategy = strategy
        self._task = task

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return accuracy and loss without any mask."""
        strategy, state = self._strategy, wire.tensors_of(arrays, "the server")
        if not isinstance(strategy, Hybrid):
            return MetricRecord(dict(self._judge(server_round, self._task.build, state, strategy.moments)))
        found = {
            name: self._judge(server_round, build, within(name, state), strategy.family_moments.get(name, {}))
            for name, build in self._task.families.items()
        }
        return MetricRecord(dict(with_families(found)))

    def _judge(
        self, server_round: int, build: Build, state: Mapping[str, Tensor], moments: Mapping[float, Moments]
    ) -> dict[str, float]:
        rate = self._task.mix.global_rate
        with torch.random.fork_rng(devices=[]):
            model = build(rate)
        load_parameters(model, state)
        if rate in moments:
            model = with_static_norm(model, moments[rate])
        with torch_threads(cores()):  # clients wait while the server evaluates
            result = evaluate(
                model.to(self._task.device),
                self._task.whole_test(self._strategy.federation.nodes.dealt()),
                seed=derive(self._task.settings.seed, "central", server_round),
                perplexity_kind=self._task.settings.fidelity.perplexity,
            )
        return result.metrics("global")
