"""What the user names -> the files that are meant: files, folders, patterns; devices and task names.

Everything here fails early and in one sentence, before a model is loaded.
"""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from polysense.core.errors import InputError

# Endings by modality, for folders and for guessing; a file named outright is tried whatever its ending.
ENDINGS: dict[str, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"),
    "point_cloud": (".ply", ".pcd", ".xyz", ".pts", ".las", ".laz", ".obj", ".stl", ".off", ".bin", ".npy", ".npz"),
    "time_series": (".csv", ".tsv", ".parquet", ".ts", ".txt", ".xlsx"),
    "tabular": (".csv", ".tsv", ".parquet", ".xlsx"),
}


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


def check_name(name: str, known: Iterable[str], kind: str = "task or bundle") -> None:
    """Accepts a known name, a folder that exists or a hub name ("owner/name").

    Raises:
        InputError: The name is none of these; the message names the nearest ones.
    """
    known = list(known)
    if name in known or Path(name).exists() or "/" in name:
        return
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.55)
    fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of: {', '.join(known) or 'none is installed'}"
    raise InputError(name, f"there is no such {kind}", fix.rstrip("?"))


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
