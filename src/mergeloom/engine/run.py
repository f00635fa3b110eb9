"""Runs the jobs of a plan: workers take spans of blocks, read, compute and write them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mergeloom.engine.device import (
    one_torch_thread,
    resolve_device,
    take_one_torch_thread,
)
from mergeloom.engine.journal import Finished
from mergeloom.engine.kernels import make_kernel
from mergeloom.engine.memory import DEFAULT_MEMORY, Memory, memory_of
from mergeloom.engine.read_ahead import ReadAhead, input_bytes
from mergeloom.engine.scratch import Scratch, Spare
from mergeloom.engine.sink import Sink
from mergeloom.engine.sizes import (
    BLOCK,
    BLOCKS_PER_SPAN,
    default_threads,
)
from mergeloom.engine.waiting import wait_through
from mergeloom.errors import MergeError, MergeloomError, Problem
from mergeloom.planning import Job, Plan
from mergeloom.types import DTYPES, numel


@dataclass(frozen=True)
class Settings:
    """How to run; none of it but the kind of device changes a byte of the result.

    Args:
        threads: workers; None for the cores this process may use.
        max_memory: bytes the whole process may take.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu`` or ``auto``.
        allow_nonfinite: count NaN and infinity instead of stopping at them.
        progress: called with (bytes read, bytes written) of each finished span, from any thread.
    """

    threads: int | None = None
    max_memory: int = DEFAULT_MEMORY
    device: str = "cpu"
    allow_nonfinite: bool = False
    progress: Callable[[int, int], None] | None = None


@dataclass
class Report:
    """What a run did: non-finite elements and notes by tensor, and its engine time in seconds."""

    nonfinite: dict[str, int] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: float = 0.0


class Running:
    """One job on its way: its kernel, the pass it is in, what is left of it."""

    def __init__(self, number: int, job: Job, device: str, seed: int, spare: Spare) -> None:
        self.number = number
        self.job = job
        self.kernel = make_kernel(job, job.formula(), device, seed, spare)
        self.lock = threading.Lock()
        self.nonfinite = 0
        self.notes: list[str] = []
        row = self.kernel.block_row
        block = max(1, BLOCK // row) * row
        size = numel(job.shape)
        span = block * BLOCKS_PER_SPAN
        self.step = block * self.kernel.blocks
        self.spans = [(a, min(a + span, size)) for a in range(0, size, span)] or [(0, 0)]
        self.left = len(self.spans)
        self.phases = self.kernel.phases if size else 0
        """Measuring passes; the pass with this number is the writing one."""


@dataclass(frozen=True)
class Task:
    """One span of one job in one of its passes."""

    running: Running
    span: int
    phase: int

    @property
    def writes(self) -> bool:
        """Whether this is the pass that makes the output."""
        return self.phase == self.running.phases


class Queue:
    """Hands out spans: those of started jobs first, so that their inputs are still cached."""

    def __init__(
        self, jobs: Iterable[tuple[int, Job]], device: str, seed: int, spare: Spare
    ) -> None:
        self._jobs = deque(jobs)
        self._device = device
        self._seed = seed
        self._spare = spare
        self._ready: deque[Task] = deque()
        self._measuring = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._start_next()  # here and not in a worker: its kernel may import torch

    def take(self) -> Task | None:
        """The next span, or None when all are handed out. Waits while a pass may follow another."""
        with self._changed:
            while not self._stopped:
                if self._ready:
                    return self._ready.popleft()
                if self._start_next():
                    continue
                if not self._measuring:
                    return None
                self._changed.wait()
            return None

    def next_pass(self, running: Running, phase: int) -> None:
        """Queue the pass after the one that has just ended."""
        with self._changed:
            running.left = len(running.spans)
            self._measuring -= phase == running.phases
            self._push(running, phase)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _start_next(self) -> bool:
        """Put the next job's spans into the queue; False if there is none."""
        if not self._jobs:
            return False
        running = Running(*self._jobs.popleft(), self._device, self._seed, self._spare)
        self._measuring += running.phases > 0
        self._push(running, 0)
        return True

    def _push(self, running: Running, phase: int) -> None:
        tasks = [Task(running, i, phase) for i in range(len(running.spans))]
        self._ready.extendleft(reversed(tasks))


def run(
    plan: Plan,
    sink: Sink,
    settings: Settings | None = None,
    finished: Sequence[Finished] = (),
    done: Callable[[Finished], None] | None = None,
) -> Report:
    """Compute every output tensor of a plan that is not finished yet.

    Args:
        plan: what to compute.
        sink: takes the blocks.
        settings: how to run.
        finished: tensors that an earlier run completed.
        done: called when a tensor's last block has been written, from any thread.

    Raises:
        MergeError: a tensor cannot be computed or has NaN or infinity in it.
        KeyboardInterrupt: passed on once the workers have stopped.
    """
    settings = settings or Settings()
    device = resolve_device(settings.device)
    report = Report()
    for tensor in finished:
        _check_finite(plan, tensor, settings)
        _record(report, plan, tensor)
    if settings.progress:
        for tensor in finished:
            job = plan.jobs[tensor.job]
            settings.progress(job.nbytes_in * job.passes, job.nbytes)
    skip = {tensor.job for tensor in finished}
    jobs = [(n, job) for n, job in enumerate(plan.jobs) if n not in skip]
    memory = _memory(plan, settings, device)
    threads = _threads(memory, settings)
    spare = Spare(*memory.spare(threads, settings.max_memory))
    queue = Queue(jobs, device, plan.seed, spare)
    ahead = ReadAhead([job for _, job in jobs])
    failures: list[BaseException] = []

    def work() -> None:
        worker = Worker(queue, ahead, sink, settings)
        try:
            while task := queue.take():
                take_one_torch_thread()
                if tensor := worker.run(task):
                    _check_finite(plan, tensor, settings)
                    if done:
                        done(tensor)
                    _record(report, plan, tensor)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(error)
            queue.stop()

    started = time.perf_counter()
    with ahead, one_torch_thread():
        _run_workers(work, threads, queue)
    report.seconds = time.perf_counter() - started
    if failures:
        raise failures[0]
    return report


def check_settings(plan: Plan, settings: Settings) -> None:
    """Refuse a device or a memory limit that cannot do, before anything is fetched or written.

    Raises MergeError.
    """
    _threads(_memory(plan, settings, resolve_device(settings.device)), settings)


def _run_workers(work: Callable[[], None], count: int, queue: Queue) -> None:
    """Run ``count`` workers to their end; an interrupt stops them after their current span.

    So does a thread that cannot be started: nobody writes any more when this returns.
    """
    ends = [threading.Event() for _ in range(count)]
    begun: list[threading.Event] = []

    def told(end: threading.Event) -> None:
        begun.append(end)
        try:
            work()
        finally:
            end.set()

    try:
        for i, end in enumerate(ends):
            threading.Thread(target=told, args=(end,), name=f"mergeloom-{i}").start()
        for end in ends:
            end.wait()
    except BaseException:
        queue.stop()  # who begins later finds nothing to do
        for end in begun:
            with contextlib.suppress(BaseException):  # the first one is raised
                wait_through(end)
        raise


def _memory(plan: Plan, settings: Settings, device: str) -> Memory:
    """``device`` is the resolved one: to resolve another name than ``cpu`` imports torch."""
    return memory_of(plan, device, torch=settings.device != "cpu")


def _threads(memory: Memory, settings: Settings) -> int:
    if settings.threads is not None and settings.threads < 1:
        raise MergeError(Problem("--threads", f"{settings.threads} is less than one"))
    wanted = settings.threads or default_threads()
    threads = memory.affordable(wanted, settings.max_memory)
    if threads < 1:
        raise MergeError(
            Problem(
                "--max-memory",
                f"{settings.max_memory:,} bytes is too little for this merge",
                f"Allow at least {-(-memory.least(1) // 10**6)}MB.",
            )
        )
    return threads


def _record(report: Report, plan: Plan, tensor: Finished) -> None:
    name = plan.jobs[tensor.job].name
    if tensor.nonfinite:
        report.nonfinite[name] = tensor.nonfinite
    if tensor.notes:
        report.notes[name] = tensor.notes


def _check_finite(plan: Plan, tensor: Finished, settings: Settings) -> None:
    if not tensor.nonfinite or settings.allow_nonfinite:
        return
    job = plan.jobs[tensor.job]
    sources = ", ".join(f"{i.model}:{i.tensor}" for i in job.inputs)
    raise MergeError(
        Problem(
            job.name,
            f"{tensor.nonfinite} of {numel(job.shape)} elements are NaN or infinite after "
            f"{job.method or 'copying'} in {DTYPES[job.dtype].torch_name} from {sources}",
            "Look for a damaged input or too large a weight, choose a wider dtype, or continue "
            "with --allow-nonfinite.",
        )
    )


class Worker:
    """One thread's hands: its scratch memory and what it does with a span."""

    def __init__(self, queue: Queue, ahead: ReadAhead, sink: Sink, settings: Settings) -> None:
        self._queue = queue
        self._ahead = ahead
        self._sink = sink
        self._progress = settings.progress or _no_progress
        self._scratch = Scratch()

    def run(self, task: Task) -> Finished | None:
        """Do one span; the finished tensor if it was the job's last."""
        running = task.running
        start, stop = running.spans[task.span]
        if task.phase == 0:  # later passes find their inputs in the page cache
            self._ahead.taken(input_bytes(running.job, start, stop))
        try:
            if task.writes:
                self._write(running, task.span, start, stop)
            else:
                self._measure(running, task, start, stop)
            return self._finish(task)
        except MergeloomError:
            raise
        except Exception as error:
            raise MergeError(_located(running.job, error)) from error

    def _measure(self, running: Running, task: Task, start: int, stop: int) -> None:
        kernel = running.kernel
        part = kernel.measure(task.phase, task.span, start, stop, running.step, self._scratch)
        with running.lock:
            kernel.absorb(task.phase, task.span, part)
        if kernel.reads_all(task.phase):
            self._progress(input_bytes(running.job, start, stop), 0)

    def _write(self, running: Running, span: int, start: int, stop: int) -> None:
        bad = 0
        carried, place = running.kernel.begin(span), self._sink.place(running.number)
        for a in range(start, stop, running.step):
            b = min(a + running.step, stop)
            block = running.kernel.output(a, b, self._scratch, carried, place)
            bad += block.nonfinite
            if block.data is not None:
                self._sink.write(running.number, a, block.data)
        with running.lock:
            running.nonfinite += bad
        size = DTYPES[running.job.dtype].bytes
        self._progress(input_bytes(running.job, start, stop), (stop - start) * size)

    def _finish(self, task: Task) -> Finished | None:
        running = task.running
        with running.lock:
            running.left -= 1
            if running.left:
                return None
        if task.writes:
            return Finished(running.number, running.nonfinite, tuple(running.notes))
        phase = running.kernel.settle(task.phase, running.notes.append)
        self._queue.next_pass(running, phase)
        return None


def _no_progress(read: int, written: int) -> None:
    """Used when nobody watches."""
    del read, written


def _located(job: Job, error: Exception) -> Problem:
    inputs = ", ".join(f"{i.model} {i.view.dtype} {list(i.view.shape)}" for i in job.inputs)
    return Problem(
        job.name, f"{type(error).__name__} in {job.method or 'copying'} of {inputs}: {error}"
    )
