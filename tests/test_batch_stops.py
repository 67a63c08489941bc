"""Jobs that are killed, interrupted, robbed of a process or of room on the disk: started again, they end as if nothing
had happened, and leave nothing behind. And a job's memory does not grow with its inputs."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from polysense.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a busy machine may take long; what hangs is found

COUNT = 2500  # inputs: what was done is kept by the thousand
MARK = "POLYSENSE_TEST_FOLDER"  # tells the processes of a test from all others
MEASURED = """
import resource, sys
from polysense.apps.cli import main
try:
    main(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def save_series(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number, values in enumerate(rng.normal(size=(count, 32)).astype(np.float32)):
        np.save(folder / f"{number:05d}.npy", values)
    return folder


class Command:
    """`polysense predict` on many small files, some of them damaged and some in a tar, in processes of its own.

    Args:
        folder: Where all of it happens.
        model: The bundle that answers.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.temporary, self.out = model, folder / "temporary", folder / "out" / "answers.jsonl"
        self.temporary.mkdir()
        self.out.parent.mkdir()
        self.files = save_series(folder / "files", COUNT)
        for number in range(7, COUNT, 300):
            path = self.files / f"{number:05d}.npy"
            path.write_bytes(path.read_bytes()[:-9])
        self.tar = folder / "more.tar"
        with tarfile.open(self.tar, "w") as tar:
            for path in sorted(self.files.iterdir())[:200]:
                tar.add(path, path.name)
        self.environment = os.environ | {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", MARK: str(folder)}
        self.folder, self.log = folder, folder / "log"

    def start(self, *options: str, out: Path | None = None) -> subprocess.Popen[bytes]:
        command = ["predict", self.model, self.tar, self.files, "--out", out or self.out, "--workers", "2", *options]
        with self.log.open("wb") as log:
            return subprocess.Popen([sys.executable, "-m", "polysense.apps.cli", *map(str, command)],
                                    env=self.environment, stderr=log, start_new_session=True)  # fmt: skip

    def run(self, *options: str, out: Path | None = None) -> int:
        return self.start(*options, out=out).wait()

    def whole(self, out: Path | None = None) -> tuple[bytes, bytes]:
        """The output and the list of errors, which are all that there is, and go."""
        out = out or self.out
        errors = out.with_name(f"{out.name}.errors.jsonl")
        assert sorted(path.name for path in out.parent.iterdir()) == [out.name, errors.name]
        content = out.read_bytes(), errors.read_bytes()
        out.unlink()
        errors.unlink()
        return content

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # another user's, or gone meanwhile
                continue
        return found

    def check_nothing_is_left(self) -> None:
        wait_for(lambda: not self.processes())
        assert not list(self.temporary.glob("polysense-*"))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def command(tmp_path: Path, build: Callable[..., Pipeline], encoder_spec: str) -> Iterator[Command]:
    pipeline = build("time-series-embedding", encoder=encoder_spec)
    command = Command(tmp_path, pipeline.save_pretrained(tmp_path / "bundle"))
    yield command
    for process in command.processes():  # of a test that failed
        process.kill()


def test_killed_at_any_moment(command: Command) -> None:
    begun = time.monotonic()
    assert command.run() == 3
    usual = time.monotonic() - begun
    expected = command.whole()
    assert len(expected[0].splitlines()) + len(expected[1].splitlines()) == COUNT + 200
    killed = 0
    for moment in np.random.default_rng(3).uniform(0, usual, 20):
        process = command.start("--resume")
        try:
            assert process.wait(moment) == 3
            assert command.whole() == expected
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    print(f"a run takes {usual:.1f} s; {killed} of 20 were killed before their end")
    assert killed
    assert command.run("--resume") == 3
    assert command.whole() == expected
    command.check_nothing_is_left()


def test_killed_readers_cost_nothing(command: Command) -> None:
    assert command.run() == 3
    expected = command.whole()
    process = command.start()

    def readers() -> list[psutil.Process]:
        """They are children of the server's, whose parent is the command."""
        server = [one for one in psutil.Process(process.pid).children() if one.children()]
        return [reader for one in server for reader in one.children()]

    wait_for(lambda: len(readers()) == 2)
    for reader in readers():
        reader.kill()
    assert process.wait() == 3
    assert command.whole() == expected
    command.check_nothing_is_left()


def test_interrupted_by_hand(command: Command) -> None:
    """Ctrl-C reaches the command and all its processes."""
    assert command.run() == 3
    expected = command.whole()
    job = command.out.with_name(f".{command.out.name}.job")
    answers = job / "answers"
    for begun in (lambda: (job / "settings.json").exists(), lambda: answers.exists() and answers.stat().st_size > 0):
        process = command.start("--resume")
        wait_for(begun)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        said = command.log.read_text()
        assert "interrupted: " in said and "Traceback" not in said
        wait_for(lambda: not command.processes())
    assert "--resume goes on" in said
    assert not list(command.temporary.iterdir())
    assert command.run("--resume") == 3
    assert command.whole() == expected
    command.check_nothing_is_left()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(kilobytes) -> a folder on a disk of that size, which keeps what it holds when called again."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kilobytes: int) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        mount = ["mount", "-t", "tmpfs", "-o", f"{again}size={kilobytes}k", "none", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small disk")
        return place

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(command: Command, small_disk: Callable[[int], Path]) -> None:
    """Too small first for what is computed, then for the output beside it."""
    assert command.run() == 3
    expected = command.whole()
    whole = len(expected[0]) // 1024  # kilobytes; the journal is packed, and a third of that
    for kilobytes in (whole // 3, whole):
        out = small_disk(kilobytes) / "answers.jsonl"
        assert command.run("--resume", "--quiet", out=out) == 1
        said = command.log.read_text()
        assert said.startswith(f"error: {out}: the disk is full") and said.count("\n") == 1
        assert [path.name for path in out.parent.iterdir()] == [".answers.jsonl.job"]
    small_disk(4 * whole)
    assert command.run("--resume", out=out) == 3
    assert command.whole(out) == expected
    command.check_nothing_is_left()


def test_memory_does_not_grow_with_the_inputs(command: Command, tmp_path: Path) -> None:
    peaks = []
    for count in (10, 50_000):
        files = save_series(tmp_path / str(count), count)
        arguments = ["predict", command.model, files, "--out", command.out, "--workers", "2", "--quiet"]
        measured = subprocess.run([sys.executable, "-c", MEASURED, *map(str, arguments)], env=command.environment,
                                  capture_output=True, text=True, check=True)  # fmt: skip
        peaks.append(int(measured.stdout.split()[-1]))
        with command.out.open("rb") as lines:
            assert sum(1 for _ in lines) == count
    print(f"peak of 10 and 50,000 files: {peaks} kB")
    assert peaks[1] < 1.1 * peaks[0]
