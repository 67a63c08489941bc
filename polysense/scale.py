"""The same answers from many machines: Ray Data (extra `scale`) sends windows of items to actors, each of which holds
the pipeline and a process that reads for it. What comes back comes in order, so that a journal can be kept here.

Data travel only as names: actors open the files themselves, so that paths must mean the same on all machines.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from polysense.batches import Answered, BatchSize, answer_reads
from polysense.core.errors import InputError
from polysense.data import spool as spools
from polysense.data.journal import from_line, to_line
from polysense.data.spool import Spool
from polysense.decode import Decoders, Setup
from polysense.pipeline import Pipeline

WINDOW = 128  # items that an actor answers at a time
ROUND = 500  # windows that are handed to Ray at once: their names are in its memory
START_ONE = "start one (ray start --head), or leave --address out"


class Answerer:
    """An actor: answers windows of items.

    Args:
        pipeline: Ray's reference to what answers.
        batch_size, horizon: See `answer_reads`.
        timeout, setup: See `Decoders`.
    """

    def __init__(
        self, pipeline: Any, batch_size: int | None, horizon: int | None, timeout: float, setup: Setup | None
    ) -> None:
        import ray
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        held: Pipeline = ray.get(pipeline)
        self.pipeline = held.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.size, self.horizon, self.timeout, self.setup = BatchSize(batch_size), horizon, timeout, setup

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Names of windows -> their answers; both as JSON, which Ray can hold."""
        return {"answers": [json.dumps(self._answer(*json.loads(window))) for window in batch["items"]]}

    def _answer(self, inputs: int, window: list[tuple[int, str]]) -> list[tuple[list[str], int, int]]:
        items = [(number, spools.from_line(line)) for number, line in window]
        with Decoders(self.pipeline.tokenizer, 1, self.timeout, setup=self.setup) as decoders:
            reads = decoders.stream(items)
            answered = answer_reads(self.pipeline, reads, self.size, self.horizon, (items[0][0], inputs))
            return [(list(map(to_line, part.answers)), part.item, part.inputs) for part in answered]


def answer_by_ray(
    pipeline: Pipeline,
    spool: Spool,
    after: tuple[int, int] = (0, 0),
    *,
    address: str | None = None,
    actors: int | None = None,
    batch_size: int | None = None,
    horizon: int | None = None,
    timeout: float = 120.0,
    setup: Setup | None = None,
) -> Iterator[Answered]:
    """Answers the items of a spool on a Ray cluster, in their order.

    Args:
        pipeline: What answers; actors get a copy. Its encoder runs in torch.
        spool: The items.
        after: See `answer_reads`.
        address: Of the cluster; None starts one on this machine.
        actors: How many; None: one for each CPU (or GPU) of the cluster.
        batch_size, horizon, timeout, setup: See `Answerer`.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connect(address)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    count = actors or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    try:
        held = ray.put(pipeline.to("cpu"))
        ahead = _windows(spool, *after)
        while windows := list(islice(ahead, ROUND)):
            pool = ray.data.ActorPoolStrategy(size=min(count, len(windows)))
            answers = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
                Answerer, batch_size=1, compute=pool, num_gpus=1 if gpus else None,
                fn_constructor_args=(held, batch_size, horizon, timeout, setup),
            )  # fmt: skip
            for row in answers.iter_rows():
                for lines, number, inputs in json.loads(row["answers"]):
                    yield Answered(list(map(from_line, lines)), number, inputs)
    finally:
        ray.shutdown()


def _windows(spool: Spool, item: int, inputs: int) -> Iterator[dict[str, str]]:
    """Items from one on, of which so many inputs are done, as Ray takes them."""
    numbered = spool.numbered(item)
    while window := list(islice(numbered, WINDOW)):
        yield {"items": json.dumps([inputs, [(number, spools.to_line(item)) for number, item in window]])}
        inputs = 0


def check_reachable(address: str | None) -> None:
    """Asks whether anything listens at an address such as 10.0.0.1:6379; Ray itself would try for minutes.

    Raises:
        InputError: Nothing does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # None, "auto", "local": Ray finds it, or says so
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address {address}", f"there is no Ray cluster ({error})", START_ONE) from error


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("engine ray", "Ray is not installed", 'pip install "polysense[scale]"') from error
    check_reachable(address)
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False,
                 logging_level=logging.ERROR, configure_logging=True)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        problem = f"there is no Ray cluster ({str(error).splitlines()[0]})"
        raise InputError(f"address {address}", problem, START_ONE) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray
