"""Where the batches of a study are computed: in this process, or by Ray's workers."""

from __future__ import annotations

import os
import pickle
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dllm_sampling.errors import ConfigurationError, StudyError
from dllm_sampling.plugins.discovery import FOLDER, STRICT, named_folder, registry, use_folder
from dllm_sampling.plugins.registry import SELECT
from dllm_sampling.study.cells import Unit
from dllm_sampling.study.work import CellFailure, Worker
from dllm_sampling.tasks import Example

Examples = dict[str, Sequence[Example]]


@dataclass
class Finished:
    """A batch that was computed, or why its cell cannot be."""

    unit: Unit
    where: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    failure: CellFailure | None = None


class Executor(ABC):
    """Computes batches; what it yields does not depend on which executor it is, but for the times."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, units: Iterable[Unit], examples: Examples) -> Iterator[Finished]:
        """Compute units, taking each from the iterable as late as it can."""


class LocalExecutor(Executor):
    """One batch after the other, in this process."""

    name: ClassVar[str] = "local"

    def run(self, units: Iterable[Unit], examples: Examples) -> Iterator[Finished]:
        worker = Worker(examples)
        where = f"process {os.getpid()}"
        for unit in units:
            yield _finished(worker, unit, where)


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Batches as tasks of Ray: several GPUs of one machine, or a cluster.

    address: of a running cluster ("auto" finds it); None starts Ray on this machine.
    workers: batches in flight; None for one a GPU, or one a core where the models are on the CPU.
    retries: how often a batch whose worker died is tried again.
    """

    name: ClassVar[str] = "ray"
    address: str | None = None
    workers: int | None = None
    retries: int = 3

    def run(self, units: Iterable[Unit], examples: Examples) -> Iterator[Finished]:
        ray = _ray()
        units = iter(units)
        first = next(units, None)
        if first is None:
            return
        gpu = first.cell.run.model.device.startswith("cuda")
        started = not ray.is_initialized()
        if started:
            self._start(ray, gpu)
        try:
            key = "GPU" if gpu else "CPU"
            available = int(ray.cluster_resources().get(key, 0))
            workers = self.workers or available
            if workers < 1:
                raise ConfigurationError(f"--executor ray: the cluster has no {key}.")
            # A worker takes the cores that the others leave it.
            cores = max(int(ray.cluster_resources().get("CPU", 1)) // workers, 1)
            decode = ray.remote(
                num_cpus=cores, num_gpus=int(gpu), max_retries=self.retries, retry_exceptions=False
            )(_decode)
            yield from self._drive(ray, decode, ray.put(examples), [first], units, workers)
        finally:
            if started:
                ray.shutdown()

    def _drive(
        self, ray: Any, decode: Any, examples: Any, first: list[Unit], units: Iterator[Unit], workers: int
    ) -> Iterator[Finished]:
        running: dict[Any, Unit] = {}
        waiting = _chain(first, units)
        exhausted = False
        while running or not exhausted:
            # Twice as many as run, so that no worker waits for the driver.
            while not exhausted and len(running) < 2 * workers:
                unit = next(waiting, None)
                if unit is None:
                    exhausted = True
                else:
                    running[decode.remote(ray.cloudpickle.dumps(unit), examples, named_folder())] = unit
            if not running:
                break
            ready, _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(ready[0])
            yield self._collected(ray, ready[0], unit)

    def _collected(self, ray: Any, reference: Any, unit: Unit) -> Finished:
        try:
            where, rows, failure, fatal = ray.get(reference)
        except ray.exceptions.RayError as error:
            message = f"its worker died {self.retries + 1} times: {str(error).splitlines()[0]}"
            return Finished(unit, "ray", failure=CellFailure(message, str(error)))
        if fatal is not None:
            raise fatal
        return Finished(unit, where, rows, failure)

    def _start(self, ray: Any, gpu: bool) -> None:
        environment = {name: os.environ[name] for name in (SELECT, FOLDER, STRICT) if name in os.environ}
        settings: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": False}
        if self.address is not None:
            settings["address"] = self.address
        else:
            settings["include_dashboard"] = False
            if self.workers is not None and not gpu:
                settings["num_cpus"] = max(self.workers, os.cpu_count() or 1)
        try:
            ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StudyError(f"Ray did not start: {error}") from None


def _chain(first: Iterable[Unit], rest: Iterator[Unit]) -> Iterator[Unit]:
    yield from first
    yield from rest


def _ray() -> Any:
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError:
        raise StudyError("--executor ray needs Ray: pip install 'dllm-sampling[ray]'") from None
    return ray


_worker: tuple[int, Worker] | None = None


def _decode(
    payload: bytes, examples: Examples, plugins: str | None
) -> tuple[str, list[dict[str, Any]], CellFailure | None, Exception | None]:
    """In a worker: compute a unit; errors are returned, so that Ray does not dress them up."""
    global _worker  # noqa: PLW0603 - what a worker process keeps from batch to batch
    where = f"{socket.gethostname()}, process {os.getpid()}"
    try:
        # One-file plugins are modules that only the registry can import.
        if plugins is None:
            registry()
        else:
            use_folder(plugins)
        unit = pickle.loads(payload)
        key = hash(tuple(sorted(examples)))
        if _worker is None or _worker[0] != key:
            _worker = key, Worker(examples)
        finished = _finished(_worker[1], unit, where)
    except Exception as error:  # noqa: BLE001 - raised again by the driver
        return where, [], None, error
    return where, finished.rows, finished.failure, None


def _finished(worker: Worker, unit: Unit, where: str) -> Finished:
    try:
        return Finished(unit, where, worker.records(unit))
    except CellFailure as failure:
        return Finished(unit, where, failure=failure)
