"""A job: many inputs answered into one file. It may be stopped at any moment, and goes on from there.

What is done goes into a journal (`JobFolder`), window by window; the output is written from it at the end, in the order
of the inputs, and takes its name when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polysense.apps.job_folder import JobFolder
from polysense.apps.output import Output
from polysense.apps.progress import Progress
from polysense.apps.screen import note
from polysense.batches import Answered
from polysense.core.errors import InputError
from polysense.core.predictions import Prediction
from polysense.data.items import Item
from polysense.data.journal import Place
from polysense.data.spool import Spool
from polysense.data.writers import open_writer

TOLD = 20  # inputs that are skipped with a word on the screen
Sink = Callable[[Prediction], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Inputs of one kind.

    Attributes:
        items: Lists them.
        answers: Answers those of a spool from an item on, of which so many inputs are done.
    """

    items: Callable[[], Iterable[Item]]
    answers: Callable[[Spool, tuple[int, int]], Iterator[Answered]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Attributes:
        groups: Inputs by kind.
        settings: All on which the answers depend: where it changes, the job cannot go on.
        about: What every row says beside its answer.
        skip: Go on after an input that cannot be read.
        keep: What is kept of an answer.
        escape: See `open_writer`.
        sinks: What takes the answers besides the output.
        progress: Options of `Progress`.
    """

    groups: Mapping[str, Group]
    settings: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    skip: bool = True
    keep: Callable[[Prediction], Prediction] = lambda answer: answer
    escape: bool = False
    sinks: tuple[Sink, ...] = ()
    progress: Mapping[str, bool] = field(default_factory=dict)

    def run(self, name: str | Path, resume: bool | None = None) -> int:
        """Does the job.

        Args:
            name: The file to write, see `open_writer`; or its URL.
            resume: True goes on where an interrupted run stopped, False begins anew; None does neither.

        Returns:
            The exit code: 0 all answered, 3 some inputs were skipped.

        Raises:
            InputError: None could be read; the first that could not, unless `skip`; the disk is full; see `JobFolder`.
        """
        start, output = time.perf_counter(), Output(name)
        out = output.path
        open_writer(out).discard()  # a name that cannot be written is told before hours of work
        with told_if_full(out), JobFolder(out, resume) as folder:
            try:
                if folder.begun:
                    folder.check(self.settings)
                else:
                    for kind, group in self.groups.items():
                        folder.spool(kind).fill(group.items())
                    folder.begin(self.settings)
                self._answer(folder)
                answers, errors = self._write(out, folder)
            except KeyboardInterrupt:
                with folder.journal() as journal:
                    done = journal.counts.answers + journal.counts.errors
                kept = f"{done} inputs are done; the same command with --resume goes on"
                note(f"\ninterrupted: {kept if done else 'nothing had been done yet'}.")
                raise SystemExit(130) from None
            output.send()
            folder.remove()
        output.forget()
        count = f"{answers} answer{'s' if answers > 1 else ''}{f', {errors} skipped' if errors else ''}"
        note(f"{count}, {time.perf_counter() - start:.1f} s: {name}")
        return 3 if errors else 0

    def _answer(self, folder: JobFolder) -> None:
        """Does what the journal lacks."""
        spools = {name: folder.spool(name) for name in self.groups}
        total = sum(len(spool) for spool in spools.values())
        with folder.journal() as journal:
            earlier = journal.place
            seen, before = 0, sum(len(spool) for spool in list(spools.values())[: earlier.group]) + earlier.item
            with Progress(total, before, **self.progress) as progress:
                for number, (name, spool) in enumerate(spools.items()):
                    seen += len(spool)
                    if number < earlier.group:
                        continue
                    after = (earlier.item, earlier.inputs) if number == earlier.group else (0, 0)
                    for answered in self.groups[name].answers(spool, after):
                        self._tell(answered, journal.counts.errors, folder.out)
                        place = Place(number, answered.item, answered.inputs)
                        journal.add(answered.answers, place)
                        done = seen - len(spool) + answered.item + 1
                        progress.update(done, journal.counts.answers, journal.counts.errors)

    def _tell(self, answered: Answered, told: int, out: Path) -> None:
        for answer in answered.answers:
            if not isinstance(answer, InputError):
                continue
            if not self.skip:
                raise answer
            told += 1
            if told <= TOLD and not self.progress.get("quiet"):
                note(f"skipped: {answer}")
            if told == TOLD + 1:
                note(f"more inputs are skipped; {out.name}.errors.jsonl will list all of them")

    def _write(self, out: Path, folder: JobFolder) -> tuple[int, int]:
        """Writes the output and the list of errors; returns how many of each."""
        errors = out.with_name(f"{out.name}.errors.jsonl")
        parts = folder.parts()
        part = parts / errors.name
        with folder.journal() as journal:
            counts = journal.counts
            try:
                with part.open("w", encoding="utf-8") as lines:
                    if not counts.answers:
                        self._hand_out(journal, lines.write)
                    else:
                        with open_writer(out, self.about, self.escape, parts) as writer:
                            self._hand_out(journal, lines.write, writer.write)
                if counts.errors:
                    part.replace(errors)
                else:
                    errors.unlink(missing_ok=True)  # of a run before
            finally:
                part.unlink(missing_ok=True)
        if not counts.answers:
            folder.remove()
            problem = f"none of {counts.errors} could be read"
            raise InputError("inputs", problem, f"see the lines above, or {errors}")
        return counts.answers, counts.errors

    def _hand_out(
        self, journal: Iterable[Prediction | InputError], write_error: Callable[[str], Any], *sinks: Sink
    ) -> None:
        """Gives answers to the sinks, and errors to the list of them."""
        for one in journal:
            if isinstance(one, InputError):
                record = {"source": one.source, "problem": one.problem, "fix": one.fix}
                write_error(json.dumps(record, ensure_ascii=False) + "\n")
                continue
            answer = self.keep(one)
            for sink in (*sinks, *self.sinks):
                sink(answer)


@contextmanager
def told_if_full(out: Path) -> Iterator[None]:
    """A full disk in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fix = "make room, then run the same command with --resume"
        raise InputError(out, f"the disk is full ({os.strerror(error.errno)})", fix) from error
