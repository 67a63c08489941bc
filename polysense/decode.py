"""Reading files in processes of their own, so that no file can end a job: what a reader crashes on or hangs at costs
one input.

Each process is looked after by a thread here, which sends it an item, takes what was read, and starts another process
where this one died or did not answer in time. Answers come in the order of the items. What is read ahead is bounded by
its bytes, whatever the size of the files; of a file with a million rows a few are held at a time.

Processes are forked from a server that has loaded the libraries but runs no threads (Python's "forkserver"): a fork of
this process, whose threads compute, could inherit a lock that nobody opens again.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from polysense.core.errors import InputError
from polysense.core.types import Sample
from polysense.tokenizers.base import Tokenizer

START = 120.0  # seconds that a process may take to load the libraries
MOST = 256  # items read ahead, however small
LOOK = 0.2  # seconds after which what waits looks whether it is still to wait
Setup = Callable[[], None]


class Readable(Protocol):
    """An input that can be sent to another process."""

    @property
    def name(self) -> str:
        """What it is called in answers and errors."""

    def open_local(self) -> AbstractContextManager[Path]:
        """Its bytes as a file on this machine."""


@dataclass(slots=True)
class Pending:
    """An item that is being read."""

    number: int
    item: Readable
    ready: deque[tuple[list[Sample] | InputError, int]] = field(default_factory=deque)  # with their bytes
    given: int = 0  # inputs read so far, `ready` or taken
    done: bool = False


def read_item(tokenizer: Tokenizer, item: Readable) -> Iterator[list[Sample] | InputError]:
    """The sequences of each input that an item holds; a fault of the item comes last, as an error under its name."""
    local = ""
    try:
        with item.open_local() as path:
            local = str(path)
            for sample in tokenizer.read_all(path):
                sample = replace(sample, source=sample.source.replace(local, item.name, 1))
                yield tokenizer.split(sample)
    except InputError as error:
        yield InputError(_renamed(error.source, local, item.name), error.problem, error.fix)
    except MemoryError:
        yield InputError(item.name, "there is not enough memory to read it", "leave it out, or use a larger machine")
    except Exception as error:  # a reader's fault is this item's, not the job's; it is told, with its kind
        problem = f"its reader failed ({type(error).__name__}: {' '.join(str(error).split()) or 'without a word'})"
        yield InputError(item.name, problem, "check the file, or leave it out")


def _renamed(source: str, local: str, name: str) -> str:
    """What an error is about, by the item's name: a temporary file's means nothing to anyone."""
    if local and local in source:
        return source.replace(local, name, 1)
    return name if source in (name, "<memory>") else f"{name}, {source}"


class Decoders:
    """Processes that read items for one tokenizer; a context manager.

    Args:
        tokenizer: What reads; processes get a copy without weights.
        workers: Processes; 0 reads in this process, where a crash of a reader is a crash of the job.
        timeout: Seconds after which an item that gave nothing is left.
        room: Bytes read ahead, at most; beyond that, processes wait.
        setup: Called in each process once, for settings of the process; must be picklable.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        workers: int = 2,
        timeout: float = 120.0,
        room: int = 64 << 20,
        setup: Setup | None = None,
    ) -> None:
        if workers:
            start_server(type(tokenizer).__module__)
        # Reading touches no parameter, so that the copies hold none.
        self.tokenizer = copy.deepcopy(tokenizer).to("meta") if workers else tokenizer
        self.workers, self.timeout, self.room, self.setup = workers, timeout, room, setup
        self._changed = threading.Condition()
        self._queue: deque[Pending] = deque()
        self._held = 0
        self._running = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def stream(self, items: Iterable[tuple[int, Readable]]) -> Iterator[tuple[int, list[Sample] | InputError]]:
        """Reads numbered items.

        Yields:
            For each input, in order, the number of its item and its sequences, or what is wrong with it.
        """
        if not self.workers:
            for number, item in items:
                for read in read_item(self.tokenizer, item):
                    yield number, read
            return
        self._source = iter(items)
        self._running = self.workers
        self._threads = [threading.Thread(target=self._look_after, daemon=True) for _ in range(self.workers)]
        for thread in self._threads:
            thread.start()
        while (one := self._take()) is not None:
            yield one

    def _take(self) -> tuple[int, list[Sample] | InputError] | None:
        """The next input in order; None at the end."""
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._queue and self._queue[0].ready:
                    head = self._queue[0]
                    read, size = head.ready.popleft()
                    self._held -= size
                    self._changed.notify_all()
                    return head.number, read
                if self._queue and self._queue[0].done:
                    self._queue.popleft()
                    self._changed.notify_all()
                elif not self._queue and not self._running:
                    return None
                else:
                    self._changed.wait()

    def _look_after(self) -> None:
        """The life of a thread: one process after another, one item after another."""
        worker: Worker | None = None
        try:
            while (pending := self._next()) is not None:
                worker = self._read(worker, pending)
        except BaseException as error:  # told where the answers are taken
            self._failure = error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            if worker is not None:
                worker.stop()

    def _next(self) -> Pending | None:
        with self._changed:
            while not self._closed and (self._held > self.room or len(self._queue) >= MOST):
                self._changed.wait()
            if self._closed or self._failure is not None:
                return None
            for number, item in self._source:
                self._queue.append(Pending(number, item))
                return self._queue[-1]
            return None

    def _read(self, worker: Worker | None, pending: Pending) -> Worker | None:
        """Has an item read, by a new process where there is none; gives the process back if it lives."""
        for attempt in (1, 2):
            worker = worker or Worker(self.tokenizer, self.setup)
            known = pending.given  # by the first process, if this is the second
            try:
                for count, read in enumerate(worker.read(pending.item, self.timeout, lambda: not self._closed)):
                    if count >= known and not self._put(pending, read):
                        worker.stop()  # nobody wants the rest
                        return None
                break
            except TimeoutError:
                worker.stop()
                problem = f"it could not be read within {self.timeout:g} seconds"
                self._put(pending, InputError(pending.item.name, problem, "leave it out, or raise --timeout"))
                worker = None
                break
            except (EOFError, OSError):
                ended = worker.stop()
                worker = None
                # Whatever killed the process may have meant another one: once more, past what was handed on already.
                if attempt == 2:
                    problem = f"its reader crashed ({ended})"
                    self._put(pending, InputError(pending.item.name, problem, "check the file, or leave it out"))
        with self._changed:
            pending.done = True
            self._changed.notify_all()
        return worker

    def _put(self, pending: Pending, read: list[Sample] | InputError) -> bool:
        """Hands an input on once there is room; False where it is wanted no more."""
        size = 0 if isinstance(read, InputError) else sum(map(size_of, read))
        with self._changed:
            # The item whose turn it is may always hand on one, or nothing would move.
            while not self._closed and self._held > self.room and (pending.ready or pending is not self._queue[0]):
                self._changed.wait()
            pending.ready.append((read, size))
            pending.given += 1
            self._held += size
            self._changed.notify_all()
            return not self._closed


class Worker:
    """One process, seen from this side."""

    def __init__(self, tokenizer: Tokenizer, setup: Setup | None) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=work, args=(there, tokenizer, setup, tempfile.gettempdir()), daemon=True)
        self.process.start()
        there.close()  # or the end of the process would not be seen as the end of the pipe
        self._fresh = True

    def read(self, item: Readable, timeout: float, wanted: Callable[[], bool]) -> Iterator[list[Sample] | InputError]:
        """Has an item read; ends early where it is wanted no more.

        Raises:
            TimeoutError: Nothing came in time.
            EOFError, OSError: The process is gone.
        """
        self.pipe.send(item)
        while True:
            end = time.monotonic() + (timeout + START if self._fresh else timeout)
            while not self.pipe.poll(min(LOOK, max(0, end - time.monotonic()))):
                if not wanted():
                    return
                if time.monotonic() >= end:
                    raise TimeoutError
            self._fresh = False
            message = self.pipe.recv()
            if message is None:
                return
            yield message if isinstance(message, InputError) else list(map(unpack, message))

    def stop(self) -> str:
        """Ends the process and says how it ended."""
        self.pipe.close()
        self.process.join(0.1)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        if code != 0:  # it could not clear up after itself
            for left in Path(tempfile.gettempdir()).glob(f"{temporary(self.process.pid)}*"):
                shutil.rmtree(left, ignore_errors=True)
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"exit code {code}"


def work(pipe: Connection, tokenizer: Tokenizer, setup: Setup | None, folder: str) -> None:
    """The life of a process: items in, what was read out, None after each; temporary files lie in the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    if setup is not None:
        setup()
    with tempfile.TemporaryDirectory(prefix=temporary(os.getpid()), dir=folder) as tempfile.tempdir:
        try:
            while True:
                item = pipe.recv()
                for read in read_item(tokenizer, item):
                    pipe.send(read if isinstance(read, InputError) else list(map(pack, read)))
                pipe.send(None)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent is gone or has had enough


def temporary(process: int | None) -> str:
    """How names of a reading process's temporary folder begin, by which its parent finds what a crash left."""
    return f"polysense-{process}-"


Packed = tuple[dict[str, np.ndarray], str, Mapping[str, Any]]


def pack(sample: Sample) -> Packed:
    """As arrays: tensors would travel as shared memory, which is lost with the process that made it."""
    return {name: value.numpy() for name, value in sample.data.items()}, sample.source, sample.meta


def unpack(packed: Packed) -> Sample:
    data, source, meta = packed
    return Sample({name: torch.from_numpy(value) for name, value in data.items()}, source, meta)


def size_of(sample: Sample) -> int:
    """Bytes that a sample holds."""
    arrays = sum(value.nbytes for value in sample.meta.values() if isinstance(value, np.ndarray))
    return arrays + sum(tensor.numel() * tensor.element_size() for tensor in sample.data.values())


def start_server(*modules: str) -> None:
    """Starts the server that processes are forked from, which loads these modules meanwhile; once in a process."""
    multiprocessing.set_forkserver_preload([__name__, *modules])
    forkserver.ensure_running()
