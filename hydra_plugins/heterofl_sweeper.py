"""The sweeper of ``conf/``: Hydra finds it because plug-ins lie in folders of this name.

It is Hydra's basic one with three additions: blocks, for experiments whose rows are no single product of values; jobs
are checked before the first one starts, or only listed; and a job that fails stops no other.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from heterofl_flwr.app.launch.running import RunError
from heterofl_flwr.errors import ConfigError
from simulations.sweep.cost import list_jobs
from simulations.sweep.job import DIVERGED, DONE, ENDED, Job, build_job, check_jobs, flat

LONGEST_CAUSE = 300  # characters in the list at the end


class BlockSweeper(BasicSweeper):
    """Sweeps over blocks of values one after the other: over all combinations within a block, each row once.

    A value of the command line that occurs in a block picks the rows that have it. Any other takes the place of the
    blocks' own, or is added to every row.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str], blocks: Mapping[str, object]) -> None:
        super().__init__(max_batch_size, params)
        parse = OverridesParser.create().parse_overrides
        self._blocks = [parse([f"{key}={value}" for key, value in own.items()]) for own in _leaves(blocks)]

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Check all jobs, run them, and raise ``RunError`` if some failed; with ``dry``, only list them."""
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.launcher is not None
        parser = OverridesParser.create(self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs, rows = self._build_jobs(self.rows(overrides))
        if self.config["dry"]:
            print(list_jobs(jobs))
            return []
        left = [job for job in jobs if job.stage not in ENDED]
        check_jobs(left)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        print(f"{len(jobs)} jobs in {folder}, {sum(job.stage == DONE for job in jobs)} done before", flush=True)
        results: list[JobReturn] = []
        for batch in self.split_overrides_to_chunks(rows, self.max_batch_size):
            try:
                results += self.launcher.launch(batch, initial_job_idx=len(results))
            except Exception as error:
                again = "the same command goes on with what is left"
                raise RunError(f"the launcher ended: {type(error).__name__}: {error}; {again}") from error
        stages = [job.stage for job in jobs]
        diverged = f", {stages.count(DIVERGED)} diverged" if DIVERGED in stages else ""
        print(f"{stages.count(DONE)} of {len(jobs)} jobs done{diverged}")
        _raise_failures(jobs, results)
        return results

    def _build_jobs(self, rows: list[list[str]]) -> tuple[list[Job], list[list[str]]]:
        """Return the jobs and their rows; of rows with equal jobs in one folder, the first one."""
        assert self.hydra_context is not None
        assert self.config is not None
        found: dict[Path, tuple[Job, list[str]]] = {}
        for row in rows:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, row)
            job, config.hydra.job.num = build_job(flat(config)), len(found)
            path = Path(os.path.abspath(Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)))
            first, _ = found.setdefault(path, (replace(job, path=path), row))
            # The folder of the data is no part of a job's name, as on another machine equal data lie elsewhere.
            one, other = (f"{own.name} with data.root={own.config['data.root']!r}" for own in (first, job))
            if one != other:
                raise ConfigError(
                    f"{path} would hold two jobs, {one} and {other}; expected hydra.sweep.subdir to differ in them"
                )
        return [job for job, _ in found.values()], [row for _, row in found.values()]

    def rows(self, overrides: list[Override]) -> list[list[str]]:
        """Return the values of each job."""
        known = {text for block in self._blocks for row in _product(block) for text in row}
        picked, others = [], []
        for override in overrides:
            values = {text for (text,) in _product([override])}
            if not values & known:
                others.append(override)
            elif values <= known:
                picked.append(values)
            else:
                inside, outside = min(values & known), min(values - known)
                raise ConfigError(f"{inside} is in the experiment and {outside} is not: give values of one kind")
        rows = (tuple(row) for block in self._blocks or [[]] for row in _product([*block, *others]))
        found = dict.fromkeys(row for row in rows if all(values & set(row) for values in picked))
        if not found:
            wanted = " and ".join(text for values in picked for text in sorted(values))
            raise ConfigError(f"no row of the experiment has {wanted}; dry=true lists the rows that there are")
        return list(map(list, found))


def _raise_failures(jobs: list[Job], results: list[JobReturn]) -> None:
    """Raise one error for all jobs that failed, wherever their launcher ran them."""
    failed = {
        job.path.name: str(result._return_value)  # return_value would print the job's overrides
        for job, result in zip(jobs, results, strict=True)
        if result.status is JobStatus.FAILED
    }
    if failed:
        causes = (f"  {name}: {shorten(cause, LONGEST_CAUSE, placeholder=' ...')}" for name, cause in failed.items())
        raise RunError("\n".join([f"{len(failed)} of {len(jobs)} jobs failed:", *causes]))


def _product(overrides: list[Override]) -> list[list[str]]:
    """Return all combinations of the values of some overrides."""
    return BasicSweeper.split_arguments(overrides, None)[0]


def _leaves(blocks: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the blocks; an experiment that is part of another has its own within one of that."""
    if values := {key: own for key, own in blocks.items() if not isinstance(own, Mapping)}:
        yield values
    for own in blocks.values():
        if isinstance(own, Mapping):
            yield from _leaves(own)
