"""What the user names -> the files that are meant: files, folders, patterns; devices and task names.

Everything here fails early and in one sentence, before a model is loaded.
"""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path

from polysense.core.errors import InputError, InputWarning
from polysense.data.items import Item

# Where each modality's reader says which endings it reads; a file named outright is tried whatever its ending.
READERS = {
    "image": ("image", "IMAGE_ENDINGS"),
    "video": ("video", "VIDEO_ENDINGS"),
    "audio": ("audio", "AUDIO_ENDINGS"),
    "point_cloud": ("point_cloud", "CLOUD_ENDINGS"),
    "time_series": ("time_series", "SERIES_ENDINGS"),
    "tabular": ("table", "TABLE_ENDINGS"),
    "text": ("text", "TEXT_ENDINGS"),
}


def endings(modality: str) -> tuple[str, ...]:
    """File endings (lower case, with dot) that the modality's reader takes."""
    module, name = READERS[modality]
    return getattr(import_module(f"polysense.data.{module}"), name)


def expand(inputs: Sequence[str], endings: Sequence[str]) -> list[Path]:
    """Local files in the order given, each once; a folder gives its files with one of the endings, sorted by name.

    Raises:
        InputError: A name stands for nothing, or for what is no file on this machine.
    """
    from polysense.data.listing import list_items

    files = []
    for item in list_items(inputs, endings):
        if item.fault is not None:
            raise item.fault
        if not item.is_local:
            raise InputError(item.name, "this command reads files on this machine", "download or unpack it first")
        files.append(Path(item.place))
    return files


def sort_items(
    list_them: Callable[[Sequence[str]], Iterable[Item]],
    named: Sequence[str],
    modality: str | None,
    known: Sequence[str],
) -> dict[str, list[Item]]:
    """modality -> its items, each kind in the order given.

    Args:
        list_them: Lists what is meant, from folders what has one of the endings that it is told.
        named: What was named outright.
        modality: What all of them are; None tells by their endings.
        known: Modalities that may be.

    Raises:
        InputError: See `list_items` and `guess`; or the modality is none of the known ones.
    """
    if modality is not None and modality not in known:
        raise InputError(f"modality {modality}", "it cannot be embedded", f"choose one of: {', '.join(known)}")
    groups: dict[str, list[Item]] = {}
    if modality:
        for item in list_them(endings(modality)):
            groups.setdefault(modality, []).append(item)
    else:
        left = _sort_by_ending(list_them, named, known, groups)
        if left:
            several = f"{len(left)} files whose kind is not plain to see are left out (first: {left[0]})"
            one = f"{left[0]} is left out, since its kind is not plain to see"
            warnings.warn(f"{several if len(left) > 1 else one}; --modality says it", InputWarning, stacklevel=2)
    if not groups:
        problem = "no file was found whose kind is plain to see"
        raise InputError(", ".join(named), problem, f"say --modality {'|'.join(known)}")
    return groups


def _sort_by_ending(
    list_them: Callable[[Sequence[str]], Iterable[Item]],
    named: Sequence[str],
    known: Sequence[str],
    groups: dict[str, list[Item]],
) -> list[str]:
    """Fills the groups; names what is left out.

    From folders come the files whose ending leaves no doubt, and .txt files of words; a doubtful one that is named
    outright is asked about.
    """
    counts = Counter(ending for name in known for ending in endings(name))
    left = []
    for item in list_them(list(counts)):
        path = Path(item.place if item.is_local else item.name)
        ending = path.suffix.lower()
        is_text = ending == ".txt" and "text" in known and is_prose(path)
        if counts[ending] > 1 and item.name not in named and not is_text:
            left.append(item.name)
        else:
            groups.setdefault(guess(path, known), []).append(item)
    return left


def guess(path: Path, known: Sequence[str], option: str = "--modality") -> str:
    """The modality that a file's ending stands for; `option` says otherwise where it leaves doubt.

    Raises:
        InputError: None of them reads it, or several do.
    """
    fits = [name for name in known if path.suffix.lower() in endings(name)]
    if len(fits) == 1:
        return fits[0]
    if "text" in fits and path.suffix.lower() == ".txt" and is_prose(path):
        return "text"
    problem = f"{path.suffix or 'no ending'} may be {' or '.join(fits)}" if fits else "its ending is unknown"
    raise InputError(path, problem, f"say {option} {'|'.join(fits or known)}")


def is_prose(path: Path) -> bool:
    """Whether a .txt file begins with words, not with numbers or cells; a file that holds nothing counts as a text."""
    try:
        with path.open("rb") as file:
            words = file.read(2000).decode("utf-8", errors="replace").split()
    except OSError:
        return False
    plain = sum(word.strip(".,;:!?()\"'").replace("-", "").isalpha() for word in words)
    return plain >= 0.6 * len(words)


def check_model(name: str) -> None:
    """Accepts the name of a bundle or task, a folder that exists, or a Hub repository ("owner/name").

    Raises:
        InputError: It is none of these; the message names the nearest ones.
    """
    import polysense
    from polysense.tasks import TASKS

    bundles = polysense.bundles()
    usable = {info.name for info in bundles} | {info.task for info in bundles}
    usable |= {task for task in TASKS if TASKS[task].kind in ("embedding", "meaning")}
    path = Path(name).expanduser()
    if name in usable or name in TASKS or path.exists():
        return
    if "/" not in name:
        raise unknown(name, "task or bundle", usable, also=TASKS)
    if path.parent.is_dir():  # a local name, not a Hub repository
        raise InputError(name, "there is no such folder", "give a folder written by polysense fit")


def unknown(name: str, kind: str, known: Iterable[str], also: Iterable[str] = ()) -> InputError:
    """An error that suggests the names nearest to one that does not exist, among the known and the `also` names."""
    written = name.lower().replace("_", "-")
    near = difflib.get_close_matches(written, {*known, *also}, n=3, cutoff=0.55)
    # "image-clasification" is near to every classification; only names about as near as the nearest are a help.
    likeness = [difflib.SequenceMatcher(None, written, other).ratio() for other in near]
    near = [other for other, ratio in zip(near, likeness) if ratio > likeness[0] - 0.05]
    fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of: {', '.join(sorted(known))}"
    return InputError(name, f"there is no such {kind}", fix)


def choose_device(device: str, threads: int | None = None, engine: str = "torch") -> str:
    """ "auto" -> "cuda" or "cpu", "cpu" for engines that run nowhere else; sets the number of CPU threads.

    Raises:
        InputError: There is no such device on this machine.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() and engine == "torch" else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device}", "this machine has no such device", "use cpu or auto") from error
    return device
