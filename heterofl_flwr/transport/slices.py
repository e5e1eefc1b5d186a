"""The slices of a global state, as array records for messages."""

from collections.abc import Callable, Mapping, Sequence

from flwr.app import ArrayRecord
from torch import Tensor

from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.architecture import Architecture
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.transport.arrays import pack_tensors, read_tensors


class Slices:
    """Slices of a global state as array records.

    Equal slices share one record, which Flower stores and uploads only once.
    """

    def __init__(
        self, architecture: Architecture, arrays: ArrayRecord, level_tensors: Callable[[float], State]
    ) -> None:
        self._level_tensors, self._levels = level_tensors, dict[float, ArrayRecord]()
        self.state = architecture.check_state(read_tensors(arrays))
        global_plan = architecture.global_plan
        # The arrays of a user may also have running statistics, or other dtypes.
        types = [(name, str(tensor.dtype)) for name, tensor in self.state.items()]
        is_exact = [(name, f"torch.{array.dtype}") for name, array in arrays.items()] == types
        self._records = {global_plan: arrays} if is_exact else {}
        self._broadcasts: dict[Plan, ArrayRecord] = {}

    def arrays(self, plan: Plan) -> ArrayRecord:
        """Return the record with the slice of a plan."""
        if plan not in self._records:
            self._records[plan] = pack_tensors(plan.extract(self.state))
        return self._records[plan]

    def level_arrays(self, plan: Plan, rate: float) -> ArrayRecord:
        """Return the record with the slice of a plan for the level of ``rate``.

        The parameters in ``Slicing.by_level`` have the values of this level.
        """
        tensors = self._level_tensors(rate)
        if not tensors:
            return self.arrays(plan)
        if rate not in self._levels:
            self._levels[rate] = pack_tensors({**plan.extract(self.state), **tensors})
        return self._levels[rate]

    def level_parameters(self, rates: Sequence[float]) -> ArrayRecord:
        """Return the parameters of ``Slicing.by_level`` at each rate, named ``rate/parameter``."""
        return pack_tensors(
            {f"{rate}/{name}": tensor for rate in rates for name, tensor in self._level_tensors(rate).items()}
        )

    def broadcast(self, plan: Plan, tensors: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the plan's slices of the tensors that stages send. A tensor's name is ``stage/parameter``.

        Tensors of parameters that the plan lacks are left out.
        """
        if plan not in self._broadcasts:
            parameters = {name: name.partition("/")[2] for name in tensors}
            axes = {name: plan.axes[parameter] for name, parameter in parameters.items() if parameter in plan.axes}
            self._broadcasts[plan] = pack_tensors(Plan(axes).extract(tensors))
        return self._broadcasts[plan]
