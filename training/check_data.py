"""`check_data`: what is wrong with training data, said before the first step.

Parts that share examples, files that cannot be read, classes that a part lacks, labels mistyped, classes far from even,
targets that say nothing. Series to forecast are cut by time, so that their parts cannot leak.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polysense.core.errors import InputError
from polysense.training.check_files import Seen, look, name_of
from polysense.training.near_copies import near_copies
from polysense.training.progress import unheard
from polysense.training.sources import FileSources, SeriesSources, Sources, TableSources

BROKEN_SHARE = 0.05  # of the files that may be unreadable; they are left out
UNEVEN = 10.0  # times that the largest class is larger than the smallest, from which it is worth a warning
RARE = 5  # times that a class is smaller than the one whose name it nearly has
SHORTEST = 4  # letters of a name from which one wrong letter is taken for a slip
SOME_ROWS = 0.01  # of a part's rows that may stand in the training part by chance
MISSING = 0.2  # of a variate's values from which that is worth a warning
SHOWN = 3  # files that a line names; the report names all


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: "warning" or "note"; `files` are those that it is about."""

    severity: str
    sentence: str
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(self.files[:SHOWN]) + (" …" if len(self.files) > SHOWN else "")
        return f"{self.severity}: {self.sentence}" + (f": {named}" if named else "")


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, and how many examples each part has."""

    parts: Mapping[str, int]
    findings: Sequence[Finding] = field(default_factory=tuple)

    @property
    def warnings(self) -> list[Finding]:
        return [one for one in self.findings if one.severity == "warning"]

    def lines(self) -> list[str]:
        counts = ", ".join(f"{name or 'all'} {count:,}" for name, count in self.parts.items())
        return [f"checked: {counts}" + ("" if self.findings else "; nothing found"), *map(str, self.findings)]

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def check_data(
    sources: Sources, data: object, broken_share: float = BROKEN_SHARE, working: Callable[[], None] = unheard
) -> tuple[Sources, Report]:
    """Looks for faults in data that have a "train" and a "val" part.

    Args:
        sources: As `with_validation` gives them.
        data: What messages call them.
        broken_share: Of the files that may be unreadable.
        working: Called before each file is read; what it raises ends the check.

    Returns:
        The sources without what cannot be read, and the findings.

    Raises:
        InputError: More than that share cannot be read.
    """
    if isinstance(sources, FileSources):
        return _check_files(sources, data, broken_share, working)
    if isinstance(sources, TableSources):
        return sources, _check_table(sources)
    return sources, _check_series(sources) if isinstance(sources, SeriesSources) else Report({})


def _check_files(
    sources: FileSources, data: object, broken_share: float, working: Callable[[], None]
) -> tuple[Sources, Report]:
    dataset, task = sources.dataset, sources.task
    everything = list(look(dataset.items, task, dataset.classes, working))
    broken = [one for one in everything if one.fault is not None]
    if len(broken) > broken_share * len(everything):
        some = " ".join(str(one.fault) for one in broken[:SHOWN])
        problem = f"{len(broken)} of its {len(everything)} examples cannot be read ({some.rstrip('.')})"
        raise InputError(data, problem, f"repair or remove them; up to {broken_share:.0%} would be skipped")
    seen = [one for one in everything if one.fault is None]
    kept = replace(sources, dataset=replace(dataset, items=[one.item for one in seen]))
    findings = [*_faults(broken), *_unlabelled(dataset.unlabelled), *_copies(seen)]
    if task.kind == "regression":
        targets = [(one.item.split, [one.item.target[name] for name in dataset.classes]) for one in seen]
        findings += _check_numbers(targets, dataset.classes)
    else:
        findings += check_classes([(one.item.split, one.names) for one in seen], task.kind == "classification")
        findings += _empty(seen, task.kind)
    return kept, Report(dict(Counter(one.item.split for one in seen)), findings)


def _faults(broken: Sequence[Seen]) -> Iterator[Finding]:
    if broken:
        why = str(broken[0].fault).rstrip(".")
        yield _warning(
            f"{_count(broken, 'example')} cannot be read and will be skipped, the first because {why}", broken
        )


def _unlabelled(count: int) -> Iterator[Finding]:
    if count:
        yield Finding("note", f"{count:,} rows without a finite target are left out")


def _near_copies(rest: Sequence[Seen], seen: Sequence[Seen], part: str) -> Iterator[Finding]:
    """Of what is held out and no copy: what looks or sounds like something in train."""
    ours = [(one, one.likeness) for one in rest if one.likeness is not None]
    theirs = [(one, one.likeness) for one in seen if one.item.split == "train" and one.likeness is not None]
    if near := near_copies([likeness for _, likeness in ours], [likeness for _, likeness in theirs]):
        kind = ours[0][1].kind
        does = "look" if kind == "picture" else "sound"
        files = tuple(f"{ours[i][0].name} = {theirs[j][0].name}" for i, j in near)
        yield Finding("warning", f"{_count(near, kind)} of {part} {does} the same as one in train", files)


def _copies(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Equal or nearly equal inputs in different parts, and equal ones with different targets."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        groups[one.digest or f"{id(one)}"].append(one)
    taught = {key for key, group in groups.items() if any(one.item.split == "train" for one in group)}
    for part in ("val", "test"):
        held = [one for one in seen if one.item.split == part]
        leaks = [one for one in held if one.digest in taught]
        if leaks:
            yield _warning(
                f"{_count(leaks, 'example')} of {part} ({len(leaks) / len(held):.1%}) are in train too", leaks
            )
        yield from _near_copies([one for one in held if one.digest not in taught], seen, part)
    pairs = [group for group in groups.values() if len({one.names for one in group}) > 1]
    if pairs:
        several = [one for group in pairs for one in group]
        yield _warning(f"{_count(pairs, 'input')} stand there several times with different targets", several)
    again = sum(sum(one.item.split == "train" for one in group) - 1 for key, group in groups.items() if key in taught)
    if again:
        yield Finding("note", f"{again:,} examples of train are copies of others in it")


def _empty(seen: Sequence[Seen], kind: str) -> Iterator[Finding]:
    """Targets that name nothing, and boxes without an area."""
    empty = [one for one in seen if not one.names]
    if empty and kind != "classification":
        # Images without an object teach a detector too; masks without a class teach nothing.
        severity = "warning" if kind == "segmentation" or len(empty) > len(seen) / 2 else "note"
        files = tuple(one.name for one in empty)
        yield Finding(severity, f"{_count(empty, 'target')} of {len(seen):,} name no class at all", files)
    if flat := [one for one in seen if one.boxes]:
        yield _warning(f"{sum(one.boxes for one in flat):,} boxes have no area inside of their image", flat)


def check_classes(rows: Iterable[tuple[str, Sequence[str]]], single: bool) -> list[Finding]:
    """Findings about classes.

    Args:
        rows: The part of each example, and the classes that its target names.
        single: Each example has one class.
    """
    parts: dict[str, Counter[str]] = defaultdict(Counter)
    for split, names in rows:
        parts[split].update(set(names))
    total = sum(parts.values(), Counter[str]())
    found = []
    for part, counts in sorted(parts.items()):
        absent = sorted(total.keys() - counts.keys())
        if absent and part in ("train", "val"):
            found.append(Finding("warning", f"{part} has no example of {_listed(absent)}"))
        if single and len(counts) == 1:
            found.append(Finding("warning", f"all examples of {part} are of the class {next(iter(counts))!r}"))
    for small, large in slips(total):
        problem = f"the class {small!r} ({total[small]:,}) may be {large!r} ({total[large]:,}) mistyped"
        found.append(Finding("warning", problem))
    if len(train := parts["train"].most_common()) > 1:
        (large, most), (small, least) = train[0], train[-1]
        if most / least >= UNEVEN:
            ratio = f"{large!r} has {most:,} examples in train, {small!r} {least:,}"
            found.append(Finding("warning", f"the classes are uneven, {most / least:.0f} to 1: {ratio}"))
    return found


def slips(counts: Counter[str]) -> list[tuple[str, str]]:
    """Pairs of class names of which the rarer seems to be the other one mistyped.

    Names that are equal but for case, blanks and hyphens; or that differ by one letter, where one class is far larger.
    A digit is no slip: "grade 1" and "grade 2" are two classes.
    """
    ranked = [name for name, _ in counts.most_common()]
    plain = {name: "".join(name.casefold().split()).replace("-", "").replace("_", "") for name in ranked}
    found = []
    for i, small in enumerate(ranked):
        for large in ranked[:i]:
            if plain[small] == plain[large]:
                found.append((small, large))
                break
            rare = counts[large] >= RARE * counts[small] and min(len(small), len(large)) >= SHORTEST
            if rare and _one_letter(plain[small], plain[large]):
                found.append((small, large))
                break
    return found


def _one_letter(a: str, b: str) -> bool:
    """Whether one letter added, left out or replaced makes one of the other."""
    if abs(len(a) - len(b)) > 1:
        return False
    a, b = sorted((a, b), key=len)
    same = next((i for i, (left, right) in enumerate(zip(a, b)) if left != right), len(a))
    rest = a[same:] if len(a) < len(b) else a[same + 1 :]
    return rest == b[same + 1 :] and not any(letter.isdigit() for letter in a[same : same + 1] + b[same : same + 1])


def _check_numbers(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str]) -> list[Finding]:
    """Findings about numbers to predict."""
    train = np.array([row for split, row in rows if split == "train"], np.float64).reshape(-1, len(names))
    still = [name for name, column in zip(names, train.T) if len(column) and np.ptp(column) == 0]
    return [Finding("warning", f"the target {name!r} is the same in all of train") for name in still]


def _check_table(sources: TableSources) -> Report:
    import pandas as pd

    targets, parts = sources.targets(sources.frame), sources.parts
    inputs = sources.frame.drop(columns=list(sources.names))
    digests = pd.util.hash_pandas_object(inputs.astype(str), index=False).to_numpy()
    findings = list(_unlabelled(sources.unlabelled))
    for part in ("val", "test"):
        held = digests[parts == part]
        leaks = int(np.isin(held, digests[parts == "train"]).sum())
        if leaks:
            severity = "warning" if leaks > SOME_ROWS * len(held) else "note"
            sentence = f"{leaks:,} rows of {part} ({leaks / len(held):.1%}) stand in train too"
            findings.append(Finding(severity, sentence))
    if sources.task.kind == "regression":
        rows = [(str(part), list(row.values())) for part, row in zip(parts, targets)]
        findings += _check_numbers(rows, sources.names)
    else:
        single = sources.task.kind == "classification"
        findings += check_classes([(str(p), [t] if single else t) for p, t in zip(parts, targets)], single)
    return Report(dict(Counter(parts.tolist())), findings)


def _check_series(sources: SeriesSources) -> Report:
    """Variates that stand still, or of which much is missing, and series that are there twice."""
    findings = []
    columns = [(frame, name, column) for frame in sources.frames for name, column in zip(frame.names, frame.values.T)]
    for sentence, test in (
        ("stand still", lambda column: np.nanmin(column) == np.nanmax(column)),
        (f"lack more than {MISSING:.0%} of their values", lambda column: np.isnan(column).mean() > MISSING),
    ):
        hit = [(f, name) for f, name, column in columns if np.isfinite(column).any() and test(column)]
        files = tuple(f"{name_of(frame)} {name}" for frame, name in hit)
        if hit:
            findings.append(Finding("warning", f"{len(hit):,} of {len(columns):,} variates {sentence}", files))
    counts = Counter(frame.values.tobytes() for frame in sources.frames)
    if again := sum(counts.values()) - len(counts):
        findings.append(Finding("warning", f"{again:,} series are copies of others"))
    return Report({"series": len(sources.frames)}, findings)


def _warning(sentence: str, about: Sequence[Seen]) -> Finding:
    return Finding("warning", sentence, tuple(one.name for one in about))


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things):,} {name}" + ("" if len(things) == 1 else "s")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
