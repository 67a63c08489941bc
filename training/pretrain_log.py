"""Where a training writes what it measured: `log.csv`, and TensorBoard's files where tensorboardX is installed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polysense.core.errors import InputError


class TrainingLog:
    """One row a step and loss in `log.csv`: long form, so that streams may have losses that come and go.

    Args:
        out: Folder of the run.
        first: Step that comes next. What was logged of it and later steps is dropped: those steps run again.
    """

    def __init__(self, out: Path, first: int) -> None:
        self.path = out / "log.csv"
        _cut(self.path, first)
        self.board: Any = None
        if find_spec("tensorboardX") is not None:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first)

    @classmethod
    def at(cls, folder: str | Path, first: int) -> TrainingLog:
        """A log in a folder that need not be there yet, with TensorBoard's files for certain.

        Raises:
            InputError: tensorboardX is not installed, or the folder cannot be made.
        """
        check_board()
        out = Path(folder).expanduser()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(out, f"it cannot be made a folder ({error.strerror})", "choose another folder") from error
        return cls(out, first)

    def write(self, step: int, seconds: float, report: Mapping[str, float]) -> None:
        new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", "loss", "value"])
            writer.writerows([step, f"{seconds:.1f}", name, f"{value:.5f}"] for name, value in sorted(report.items()))
        if self.board is not None:
            for name, value in report.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def check_board() -> None:
    """Makes sure that tensorboardX is there.

    Raises:
        InputError: It is not.
    """
    if find_spec("tensorboardX") is None:
        fix = 'install it: pip install "polysense[pretrain]"'
        raise InputError("--tensorboard", "the package tensorboardX is not installed", fix)


def _cut(path: Path, first: int) -> None:
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 4]  # a row that a power cut halved is dropped
    kept = [row for row in rows if row[0] == "step" or int(row[0]) < first]
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        csv.writer(file).writerows(kept)
    partial.replace(path)
