"""Detection of classes that are named when it is asked: by a few examples, by words, or by both.

A fitted detector, whose boxes hold objects of any class (`DetectionHead.propose`), says where to look; where there is
none, windows of the examples' own sizes do, at every place. Two classifiers say what is there: the detector's own,
which knows its trained classes, and an open one, from examples or words. As in open-vocabulary segmentation (Xu et al.
2023, ODISE; Yu et al. 2023, FC-CLIP) a score is their geometric mean, which trusts the first more for trained classes
and the second for others.

Shape legend: n boxes of one image, xyxy in its pixels; k trained classes, m named classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, nms

from polysense.core.errors import InputError
from polysense.core.predictions import Boxes
from polysense.data.image import describe_source, read_image
from polysense.heads.detect import DetectionHead, Proposals
from polysense.pipeline import Pipeline, is_many
from polysense.regions import Grid, Prototypes, RegionFeatures, Size, windows
from polysense.words import as_labels
from polysense.zero_shot import Names, zero_shot

Examples = Mapping[str, Sequence[tuple[Any, Sequence[float]]]]  # class -> (image, box in its pixels)

ALPHA, BETA = 0.4, 0.8  # the open classifier's share in scores of trained and of other classes (FC-CLIP, section 4.1)
SOFT = 0.25  # how fast odds change with the likeness to examples; they are even where it is that of one more example
MOST = 200  # boxes of a detector that are looked at closely
MOST_WINDOWS = 100  # windows of one class that are
MOST_CROPS = 100  # of a detector's that words are asked about, which takes longest
MARGIN = 0.1  # of a crop around a box, as a share of its sides: things are named better with a little around them
SIDES, FORMS, WORD_STEP = (0.33, 0.5, 0.8), (0.7, 1.0, 1.4), 0.5  # of windows where words alone say what is looked for
NOTHING = "nothing of these"  # what words answer where none fits
# Overlap from which the lesser is dropped: of two windows, two boxes of one class, two of any classes.
WINDOW_IOU, NMS_IOU, ANY_IOU = 0.3, 0.45, 0.7
MOST_BOXES = 100  # of an answer


class Candidates(NamedTuple):
    """Where an object may be."""

    boxes: Float[Tensor, "n 4"]
    objectness: Float[Tensor, " n"]
    known: Float[Tensor, "n k"]  # scores of the trained classes
    may: Bool[Tensor, "n m"]  # the named classes that are looked for there


class OpenDetector:
    """Finds what it is shown or told; made by `open_detector`. `with_examples` and `with_words` give new ones.

    Attributes:
        threshold: Least score of an answer; lower it (to 0.01) while average precision is measured.
    """

    def __init__(self, proposer: Pipeline | None, features: RegionFeatures, trained: Sequence[str]) -> None:
        self.proposer, self.features, self.trained = proposer, features, list(trained)
        self.examples: dict[str, list[tuple[Any, tuple[float, ...]]]] = {}
        self.words: dict[str, list[str]] = {}
        self.prototypes: Prototypes | None = None
        self.namer: Pipeline | None = None
        self.threshold = 0.5

    @property
    def named(self) -> list[str]:
        """Classes that were shown or told."""
        return list(dict.fromkeys([*self.examples, *self.words]))

    @property
    def classes(self) -> list[str]:
        """All that answers may hold."""
        return list(dict.fromkeys([*self.trained, *self.named]))

    @torch.no_grad()
    def with_examples(self, examples: Examples) -> OpenDetector:
        """The same detector, which also knows classes by examples; one to ten of each are enough.

        Args:
            examples: {class: [(image, (x1, y1, x2, y2)), …]}, boxes in pixels of the upright image. Examples of a class
                that has some already are added to it.

        Raises:
            InputError: There are none, a class has no name, an image cannot be read, or a box lies outside of it.
        """
        other = copy.copy(self)
        other.examples = {name: list(pairs) for name, pairs in self.examples.items()}
        for name, pairs in examples.items():
            if not str(name).strip():
                raise InputError("examples", "a class has no name", 'write {"platelet": [(image, (x1, y1, x2, y2))]}')
            if isinstance(pairs, str) or not len(pairs):
                raise InputError(f"examples of {name!r}", "there are none", "give at least one (image, box)")
            other.examples.setdefault(str(name), []).extend((image, tuple(box)) for image, box in pairs)
        if not examples:
            raise InputError("examples", "there are none", 'write {"platelet": [(image, (x1, y1, x2, y2))]}')
        other.prototypes = learn(self.features, list(other.examples.values()))
        return other

    def with_words(self, labels: Names, meaning: str | Path | Pipeline | None = None) -> OpenDetector:
        """The same detector, which also knows classes by what they are called.

        Args:
            labels: As for `zero_shot`: "a cell, a platelet | thrombocyte", a list, {answer: names}, or a file.
            meaning: What leads pictures into the space of words: a bundle, or CLIP by `clip_pictures`.

        Raises:
            InputError: A label is empty or given twice, or see `zero_shot`.
        """
        other = copy.copy(self)
        found = as_labels(labels)
        if any(not name.strip() for name in found):
            raise InputError("labels", "a class has no name", 'give names such as "dog, cat, bird"')
        other.words = {**self.words, **found}
        device = str(self.features.pipeline.device)
        other.namer = zero_shot("image", other.words, none=NOTHING, meaning=meaning, device=device)
        return other

    def __call__(self, sources: Any) -> list[Boxes]:
        """Boxes for each source: whatever `data.image.read_image` takes, or a list or iterator of such."""
        return list(self.stream(sources))

    def stream(self, sources: Any, batch_size: int = 16, on_error: str = "raise") -> Iterator[Any]:
        """Answers lazily, image by image.

        Args:
            sources: As for a call.
            batch_size: Crops that words are asked about together.
            on_error: "raise", or "skip": an unusable source yields its InputError in its place.

        Raises:
            InputError: An image cannot be read, or no class was named.
        """
        if not self.classes:
            raise InputError("open detector", "no class was named", "use with_examples or with_words first")
        for source in sources if is_many(sources) else [sources]:
            try:
                image = read_image(source)
            except InputError as error:
                if on_error == "raise":
                    raise
                yield error
                continue
            yield self._answer(image, describe_source(source), batch_size)

    @torch.inference_mode()
    def _answer(self, image: Image.Image, source: str, batch_size: int) -> Boxes:
        size = (image.height, image.width)
        grid = self.features(image) if self.prototypes is not None else None
        found = self._propose(image) if self.proposer is not None else self._search(grid, size)
        scores = self._scores(found, image, grid, batch_size)  # (n, classes)
        best, flat = scores.flatten().topk(min(10 * MOST_BOXES, scores.numel()))
        best, flat = best[best > self.threshold], flat[best > self.threshold]
        places, labels = flat // scores.shape[1], flat % scores.shape[1]
        boxes = found.boxes[places]
        kept = batched_nms(boxes, best, labels, NMS_IOU)
        kept = kept[nms(boxes[kept], best[kept], ANY_IOU)][:MOST_BOXES]
        names = [self.classes[i] for i in labels[kept].tolist()]
        return Boxes(boxes[kept].float().cpu().numpy(), names, best[kept].float().cpu().numpy(), size, source)

    def _propose(self, image: Image.Image) -> Candidates:
        """Boxes of the fitted detector."""
        assert self.proposer is not None
        found = propose(self.proposer, image)
        may = torch.ones(len(found.boxes), len(self.named), dtype=torch.bool, device=found.boxes.device)
        return Candidates(found.boxes, found.objectness, found.known, may)

    def _search(self, grid: Grid | None, size: tuple[int, int]) -> Candidates:
        """Windows: those most like the examples, class by class; and for classes that only words tell of, a few
        everywhere."""
        boxes, owners = [], []
        if self.prototypes is not None and grid is not None:
            whitened = self.prototypes.whitening(grid.values)
            for i in range(len(self.examples)):
                found = grid.to_pixels(self.prototypes.search(whitened, i, MOST_WINDOWS, WINDOW_IOU))
                boxes.append(clip_boxes_to_image(found, size))
                owners.append({i})
        if only_told := {self.named.index(name) for name in self.words if name not in self.examples}:
            boxes.append(everywhere(size).to(self.features.pipeline.device))
            owners.append(only_told)
        may = torch.zeros(sum(map(len, boxes)), len(self.named), dtype=torch.bool, device=boxes[0].device)
        start = 0
        for part, own in zip(boxes, owners, strict=True):
            may[start : start + len(part), sorted(own)] = True
            start += len(part)
        return Candidates(torch.cat(boxes), may.new_ones(len(may)).float(), may.new_zeros(len(may), 0).float(), may)

    def _scores(self, found: Candidates, image: Image.Image, grid: Grid | None, batch_size: int) -> Tensor:
        """Both classifiers' geometric mean for every class, (n, classes)."""
        opened = self._opened(found, image, grid, batch_size)
        scores = found.boxes.new_zeros(len(found.boxes), len(self.classes))
        for j, name in enumerate(self.classes):
            said = opened.get(name)
            trained = found.known[:, self.trained.index(name)] if name in self.trained else None
            if said is None:
                assert trained is not None
                scores[:, j] = trained
            elif trained is not None:
                scores[:, j] = trained ** (1 - ALPHA) * said**ALPHA
            else:
                scores[:, j] = found.objectness ** (1 - BETA) * said**BETA if self.proposer is not None else said
        return scores

    def _opened(
        self, found: Candidates, image: Image.Image, grid: Grid | None, batch_size: int
    ) -> dict[str, Float[Tensor, " n"]]:
        """What examples and words say of each named class; their geometric mean where both speak."""
        said: dict[str, list[Tensor]] = {name: [] for name in self.named}
        if self.prototypes is not None and grid is not None:
            like = self.prototypes.likeness(self.prototypes.whitening(grid.values), grid.to_cells(found.boxes))
            for name, likeness in zip(self.examples, like.T, strict=True):
                said[name].append(((likeness - 1) / SOFT).sigmoid())
        if self.namer is not None:
            told = found.may[:, [self.named.index(name) for name in self.words]].any(1).nonzero()[:, 0]
            if self.proposer is not None:
                told = told[:MOST_CROPS]  # they come best first
            crops = [crop(image, box) for box in found.boxes[told].tolist()]
            rows = [dict(zip(one.names, one.scores, strict=True)) for one in self.namer(crops, batch_size)]
            for name in self.words:
                scores = found.boxes.new_zeros(len(found.boxes))
                scores[told] = scores.new_tensor([row[name] for row in rows])
                said[name].append(scores)
        return {name: torch.stack(parts).prod(0) ** (1 / len(parts)) * found.may[:, i]
                for i, (name, parts) in enumerate(said.items())}  # fmt: skip


def open_detector(
    proposals: str | Path | Pipeline | None = None,
    *,
    trained: bool = True,
    encoder: str = "embedded",
    device: str = "cpu",
) -> OpenDetector:
    """A detector for classes that are named when it is asked.

    Args:
        proposals: Bundle of a fitted detector, best with `objectness`, which says where objects are; None: windows of
            the examples' own sizes, everywhere.
        trained: Answer with that detector's own classes too.
        encoder: Whose features examples are compared by; a spec of `load_encoder`.
        device: Where to compute.

    Raises:
        InputError: The bundle cannot be had, or is no detector.
    """
    proposer = None
    if proposals is not None:
        proposer = proposals if isinstance(proposals, Pipeline) else Pipeline.from_pretrained(proposals, device)
        if not isinstance(proposer.head, DetectionHead):
            raise InputError(proposals if isinstance(proposals, str | Path) else proposer.name, "it is no detector",
                             "give a bundle of object-detection, such as blood-cells")  # fmt: skip
    known = proposer.head.config.classes if proposer is not None and trained else ()
    return OpenDetector(proposer, RegionFeatures(encoder, device), known)


@torch.inference_mode()
def propose(detector: Pipeline, image: Any, most: int = MOST) -> Proposals:
    """Boxes of one image that may hold an object of any class.

    Args:
        detector: A pipeline for object-detection.
        image: Whatever `data.image.read_image` takes.
        most: Boxes at most.
    """
    head = detector.head
    assert isinstance(head, DetectionHead)
    detector.eval()
    parts = detector.tokenizer.split(detector.tokenizer.read(image))
    batch = detector.tokenizer.collate(parts)
    owner = torch.zeros(len(parts), dtype=torch.int64, device=detector.device)
    out = head.merge(detector.forward(batch), owner, batch["meta"])
    return head.propose(out, head.merge_meta(batch["meta"], owner), most)[0]


def learn(features: RegionFeatures, examples: Sequence[Sequence[tuple[Any, Sequence[float]]]]) -> Prototypes:
    """Prototypes of classes from their examples; an image is read once, however many classes it shows.

    Raises:
        InputError: An image cannot be read, or a box lies outside of it.
    """
    grids: list[Grid] = []
    number: dict[Any, int] = {}
    shown = []
    for pairs in examples:
        boxes = []
        for source, box in pairs:
            key = str(source) if isinstance(source, str | Path) else id(source)
            if key not in number:
                number[key] = len(grids)
                grids.append(features(source))
            grid = grids[number[key]]
            boxes.append((number[key], grid.to_cells(check_box(box, grid.size, describe_source(source)))[0]))
        shown.append(boxes)
    return Prototypes.of(grids, shown)


def check_box(box: Sequence[float], size: tuple[int, int], source: str) -> Float[Tensor, "1 4"]:
    """A box of an example as a tensor.

    Raises:
        InputError: It is not four numbers, is empty, or does not lie in the image; by a pixel it may.
    """
    height, width = size
    fix = f"give x1,y1,x2,y2 in pixels of the image, which has {width} × {height}"
    shown = ", ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in box)
    numbers = [float(value) for value in box if isinstance(value, int | float | np.number)]
    if len(numbers) != 4 or len(box) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(source, f"the box ({shown}) is not four numbers", fix)
    x1, y1, x2, y2 = numbers
    if x2 - x1 < 1 or y2 - y1 < 1:
        raise InputError(source, f"the box ({shown}) holds no pixel", fix)
    if x1 < -1 or y1 < -1 or x2 > width + 1 or y2 > height + 1:
        raise InputError(source, f"the box ({shown}) lies outside the image", fix)
    return torch.tensor([[max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]], dtype=torch.float32)


def crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """What is in a box, and a little around it."""
    x1, y1, x2, y2 = box
    across, down = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = max(0, math.floor(x1 - across)), max(0, math.floor(y1 - down))
    right, bottom = min(image.width, math.ceil(x2 + across)), min(image.height, math.ceil(y2 + down))
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def everywhere(size: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Windows of several sizes and forms all over an image, from a third of its sides on."""
    height, width = size
    shapes: list[Size] = [(width * side * form**0.5, height * side / form**0.5) for side in SIDES for form in FORMS]
    return windows(shapes, (height, width), scales=(1.0,), step=WORD_STEP)
