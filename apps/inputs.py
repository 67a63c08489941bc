"""What the user names -> the files that are meant: files, folders, patterns; devices and task names.

Everything here fails early and in one sentence, before a model is loaded.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from polysense.core.errors import InputError

# Where each modality's reader says which endings it reads; a file named outright is tried whatever its ending.
READERS = {
    "image": ("image", "IMAGE_ENDINGS"),
    "video": ("video", "VIDEO_ENDINGS"),
    "audio": ("audio", "AUDIO_ENDINGS"),
    "point_cloud": ("point_cloud", "CLOUD_ENDINGS"),
    "time_series": ("time_series", "SERIES_ENDINGS"),
    "tabular": ("table", "TABLE_ENDINGS"),
}


def endings(modality: str) -> tuple[str, ...]:
    """File endings (lower case, with dot) that the modality's reader takes."""
    module, name = READERS[modality]
    return getattr(import_module(f"polysense.data.{module}"), name)


def expand(inputs: Sequence[str], endings: Sequence[str]) -> list[Path]:
    """Files in the order given, each once; a folder gives its files with one of the endings, sorted by name.

    Raises:
        InputError: A name stands for nothing.
    """
    from polysense.data.dataset import list_files

    files: dict[Path, None] = {}
    for name in inputs:
        # A file's own name comes first: brackets in it are no pattern.
        found = [Path(name)] if Path(name).exists() else [Path(p) for p in sorted(glob.glob(name, recursive=True))]
        if not found:
            raise InputError(name, "there is no such file or folder", "check the name")
        here: list[Path] = []
        for path in found:
            here += list_files(path, endings) if path.is_dir() else [path]
        if not here:
            raise InputError(name, "no readable file was found", f"it should hold files with {', '.join(endings)}")
        files |= dict.fromkeys(here)
    return list(files)


def check_model(name: str) -> None:
    """Accepts the name of a bundle or task, a folder that exists, or a Hub repository ("owner/name").

    Raises:
        InputError: It is none of these; the message names the nearest ones.
    """
    import polysense
    from polysense.tasks import TASKS

    bundles = polysense.bundles()
    usable = {info.name for info in bundles} | {info.task for info in bundles}
    usable |= {task for task in TASKS if TASKS[task].kind == "embedding"}
    if name not in TASKS and not Path(name).expanduser().exists() and "/" not in name:
        check_name(name, usable, "task or bundle")


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raises an InputError that suggests the nearest names when `name` is none of the known ones."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.55)
    fix = f"did you mean {' or '.join(near)}" if near else f"choose one of: {', '.join(known)}"
    raise InputError(name, f"there is no such {kind}", fix)


def choose_device(device: str, threads: int | None = None) -> str:
    """ "auto" -> "cuda" or "cpu"; sets the number of CPU threads.

    Raises:
        InputError: There is no such device on this machine.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device}", "this machine has no such device", "use cpu or auto") from error
    return device
