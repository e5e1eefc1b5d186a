"""Remarks on compared runs: not finished, ended in different rounds, or measured differently."""

from collections.abc import Iterable, Mapping, Sequence

from heterofl_flwr.common.errors import counted, listed
from heterofl_flwr.core import formatting
from heterofl_flwr.federation.client_metrics import LOCAL_ACCURACY, WORST_ACCURACY
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.renamed import current_names
from heterofl_flwr.settings.validate import flatten

NUMBER = "num-rounds="
"""Part of a row's name that says how many rounds its runs have; folders of other apps need not have this setting."""

FILL = "train.mask-fill"
"""Setting that says how classes that a client lacks are masked, in its loss and in ``MASKED`` metrics."""

MASKED = (LOCAL_ACCURACY, WORST_ACCURACY)

Histories = Mapping[RunFolder, Sequence[RoundRecord]]

Rows = dict[str, dict[object, RunFolder]]
"""Runs by the name of a table's row, then by seed."""


def remarks(histories: Histories, rows: Rows, metrics: Iterable[str]) -> list[str]:
    """Return lines on runs whose values of ``metrics`` are not comparable."""
    return _length_remarks(histories, rows) + _mask_remarks(histories, metrics)


def _length_remarks(histories: Histories, rows: Rows) -> list[str]:
    """Return a line on each run that is not finished, and one if the other runs did not end in the same round.

    If names of rows say how many rounds their runs have, only the runs of one row are expected to end in one round.
    """
    unfinished = {folder: text for folder, records in histories.items() if (text := _unfinished(folder, len(records)))}
    ends: dict[str, list[int]] = {}
    for row, runs in rows.items():
        finished = [histories[run] for run in runs.values() if run not in unfinished and histories[run]]
        ends[row] = sorted({records[-1].server_round for records in finished})
    if any(NUMBER in row for row in rows) or len(set().union(*ends.values())) < 2:
        ends = {row: numbers for row, numbers in ends.items() if len(numbers) > 1}
    named = [f"{row}: {formatting.numbers(numbers)}" for row, numbers in ends.items() if numbers]
    several = [f"runs ended in different rounds ({listed(named)}): their values are not of one round"] if named else []
    return [*unfinished.values(), *several]


def _mask_remarks(folders: Iterable[RunFolder], metrics: Iterable[str]) -> list[str]:
    """Return a line if ``metrics`` has accuracies that the runs measured with different masks.

    Runs whose data are split ``iid`` do not count, because their clients lack no classes.
    """
    settings = [current_names(flatten(folder.settings())) for folder in folders]
    fills = {str(own[FILL]) for own in settings if FILL in own and own.get("data.split") != "iid"}
    if len(fills) < 2 or not any(name.endswith(MASKED) for name in metrics):
        return []
    return [
        f"classes that a client lacks were masked differently ({FILL}: {listed(sorted(fills))}): local and worst "
        "accuracies of these runs are not comparable"
    ]


def _unfinished(folder: RunFolder, done: int) -> str:
    """Return a line on a run that is not finished; '' if it is finished, or if nothing has recorded its end."""
    about = folder.about()
    if about.get("finished") or "num_rounds" not in about:
        return ""
    state = "diverged" if about.get("diverged") else "is not finished"  # noted by a sweep
    return f"{folder.path} {state}: its values are of {done} of {counted(about['num_rounds'], 'round')}"
