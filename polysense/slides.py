"""Pictures of any size: answers for every tile, for regions and for the whole, from one pass over the tiles.

Tiles are read one row of them after another and forgotten; of a class map only a band of rows is ever held.

Shape legend: k classes, n rows and w columns of a band of the map, W columns of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polysense.core.errors import InputError
from polysense.core.predictions import Labels, Prediction
from polysense.core.types import Sample
from polysense.data.slide_maps import TILE, no_answer, write_map
from polysense.data.slides import Slide, is_blank, open_slide
from polysense.heads.base import Head, Out
from polysense.heads.segment import SegmentationHead
from polysense.heads.tiles import Bands
from polysense.heads.upsample import upsampled_argmax
from polysense.pipeline import Pipeline
from polysense.tokenizers.image_grid import FILTERS, OVERLAP, fit_size, window_starts

FEW = TILE // 8  # rows of the picture that logits are enlarged to at a time
Place = tuple[int, int]
Band = tuple[Float[Tensor, "k n w"], Bool[Tensor, "n w"]]


@dataclass(frozen=True, slots=True)
class SlideAnswer:
    """What a slide's tiles say. Sources name the part in pixels: "slide.tif#left,top,right,bottom".

    Of a segmentation the answers are `Labels` whose scores are shares of the area; of other heads they are the head's
    own, those of regions and the slide made from the mean of its outputs over their tiles.
    """

    tiles: list[Prediction]
    regions: list[Prediction]
    slide: Prediction
    blank: int  # tiles that were left out


def read_slide(
    pipeline: Pipeline,
    source: Any,
    out: str | Path | None = None,
    *,
    scale: float = 1.0,
    regions: int = 8,
    cells: bool = False,
    keep_blank: bool = False,
    batch_size: int = 16,
    track: Callable[[list[int]], Iterable[int]] = iter,
) -> SlideAnswer:
    """Answers a picture of any size from tiles of the pipeline's input size.

    Tiles of a segmentation overlap by a quarter, and where they do their logits are averaged as `heads.tiles.stitch`
    does; those of other heads lie side by side. Blank tiles (`is_blank`) are not computed and count nowhere.

    Args:
        pipeline: For images: segmentation, or a head that answers for a whole image (classification, embedding …).
        source: See `polysense.data.slides.open_slide`.
        out: A TIFF for the class map (segmentation only); 255 is where no tile was computed.
        scale: Share of the picture's size that it is read at.
        regions: Of equal size along the longer side.
        cells: The map has a pixel for each cell of the head's answer, and not for each of the picture.
        keep_blank: Compute blank tiles too.
        batch_size: Tiles computed at a time.
        track: Passes on the rows of tiles, and may show progress.

    Raises:
        InputError: The picture cannot be read, the map not be written, nothing is on it, or the head answers otherwise.
    """
    head = pipeline.head
    dense = isinstance(head, SegmentationHead)
    if pipeline.modality != "image" or not (dense or type(head).merge is Head.merge):
        fix = "use one for segmentation, classification, regression or embedding of images"
        raise InputError(pipeline.task.name, "it has no answer for slides", fix)
    if out is not None and not dense:
        raise InputError(
            pipeline.task.name, "it draws no map", "leave out the map; the tiles' answers name their places"
        )
    if not 0 < scale < np.inf or regions < 1:
        raise InputError(f"scale {scale}, regions {regions}", "both must be more than 0", "choose others")
    pipeline.eval()
    with open_slide(source) as slide, torch.inference_mode():
        run = (_DensePass if dense else _Pass)(pipeline, slide, scale, regions, keep_blank, batch_size)
        if isinstance(run, _DensePass):
            size = run.cells if cells else slide.size
            strips = run.strips(track, size)
            if out is not None:
                write_map(out, strips, size, run.classes)
            else:
                for _ in strips:
                    pass
        else:
            for _ in run.rows(track):
                pass
        return run.answer()


class _Mean:
    """A running mean of outputs."""

    def __init__(self) -> None:
        self.total: Out = {}
        self.count = 0

    def add(self, out: Out) -> None:
        self.total = {name: self.total.get(name, 0) + value.double() for name, value in out.items()}
        self.count += 1

    def value(self) -> Out:
        return {name: (value / self.count).float() for name, value in self.total.items()}


class _Pass:
    """One pass over the tiles, for heads that answer for a whole image: answers of tiles, means of outputs."""

    overlap = 0.0

    def __init__(
        self, pipeline: Pipeline, slide: Slide, scale: float, regions: int, keep_blank: bool, batch_size: int
    ) -> None:
        config: Any = pipeline.tokenizer.config
        self.pipeline, self.slide, self.keep_blank, self.batch_size = pipeline, slide, keep_blank, batch_size
        self.step, self.side = config.step, max(1, config.size // config.step)
        self.resample = FILTERS[str(config.interpolation)]
        height, width = (scale * side for side in slide.size)
        rows, columns = fit_size(height, width, config.size, self.step, "tiles")
        self.whole = (rows // self.step, columns // self.step)
        self.region = max(slide.size) / regions  # pixels along its side
        self.tiles: list[Prediction] = []
        self.regions: dict[Place, _Mean] = {}
        self.all = _Mean()
        self.blank = 0

    def rows(self, track: Callable[[list[int]], Iterable[int]]) -> Iterator[int]:
        """Computes tiles row by row; gives the first token row that no tile so far will be added to any more."""
        tops, lefts = (window_starts(length, self.side, self.overlap) for length in self.whole)
        for i in track(list(range(len(tops)))):
            waiting: list[Sample] = []
            for left in lefts:
                tile = self._tile(tops[i], left)
                waiting += [tile] if tile else []
                if len(waiting) == self.batch_size or (left == lefts[-1] and waiting):
                    batch = self.pipeline.tokenizer.collate(waiting)
                    self.take(self.pipeline.forward(batch), batch["meta"])
                    waiting = []
            yield tops[i + 1] if i + 1 < len(tops) else self.whole[0]

    def _tile(self, row: int, column: int) -> Sample | None:
        (height, width), (rows, columns) = self.slide.size, self.whole
        grid = (min(self.side, rows), min(self.side, columns))
        across, down = width / columns, height / rows  # pixels of the original in a cell
        window = (column * across, row * down, (column + grid[1]) * across, (row + grid[0]) * down)
        sides = (grid[0] * self.step, grid[1] * self.step)
        pixels = self.slide.read(window, sides, self.resample)
        if not self.keep_blank and is_blank(pixels):
            self.blank += 1
            return None
        meta = {"size": self.slide.size, "input_size": sides, "grid": grid, "window": window, "place": (row, column),
                "whole": self.whole}  # fmt: skip
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
        return Sample({"image": image}, self._name(window), meta)

    def _name(self, window: tuple[float, ...]) -> str:
        return f"{self.slide.source}#{','.join(str(round(side)) for side in window)}"

    def take(self, out: Out, meta: list[dict[str, Any]]) -> None:
        """Keeps what a batch of tiles says."""
        self.tiles += self.pipeline.head.decode(out, meta)
        for i, about in enumerate(meta):
            self.count({name: value[i] for name, value in out.items()}, about)

    def count(self, one: Out, about: dict[str, Any]) -> None:
        """Adds a tile to the slide and to the region that its centre lies in."""
        left, top, right, bottom = about["window"]
        place = (int((top + bottom) / 2 / self.region), int((left + right) / 2 / self.region))
        self.regions.setdefault(place, _Mean()).add(one)
        self.all.add(one)

    def decode(self, out: Out, source: str) -> Prediction:
        return self.pipeline.head.decode({name: value[None] for name, value in out.items()}, [{"source": source}])[0]

    def answer(self) -> SlideAnswer:
        if not self.all.count:
            raise InputError(self.slide.source, "all its tiles are blank", "keep blank tiles, or check the picture")
        (height, width), regions = self.slide.size, []
        for (row, column), mean in sorted(self.regions.items()):
            left, top = column * self.region, row * self.region
            window = (left, top, min(left + self.region, width), min(top + self.region, height))
            regions.append(self.decode(mean.value(), self._name(window)))
        return SlideAnswer(self.tiles, regions, self.decode(self.all.value(), self.slide.source), self.blank)


class _DensePass(_Pass):
    """One pass for a segmentation: the shares of classes, and the map, band by band."""

    overlap = OVERLAP

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        config: Any = self.pipeline.head.config
        self.names, self.scale = config.classes, 2**config.upsample
        self.classes = len(self.names)
        self.cells = (self.scale * self.whole[0], self.scale * self.whole[1])
        self.bands = Bands(self.classes, self.whole, self.scale)
        self.area = torch.zeros(self.classes, dtype=torch.int64)

    def take(self, out: Out, meta: list[dict[str, Any]]) -> None:
        for logits, about in zip(out["logits"].cpu(), meta, strict=True):
            rows, columns = (self.scale * size for size in about["grid"])
            index = logits[:, :rows, :columns].argmax(0).flatten()
            shares = {"shares": torch.bincount(index, minlength=self.classes) / len(index)}
            self.tiles.append(self.decode(shares, about["source"]))
            self.count(shares, about)
            self.bands.add(logits, about)

    def decode(self, out: Out, source: str) -> Prediction:
        scores, order = out["shares"].sort(descending=True, stable=True)
        names = [self.names[i] for i in order.tolist()]
        return Labels(names, scores.tolist(), names[:1], source)

    def strips(
        self, track: Callable[[list[int]], Iterable[int]], size: tuple[int, int]
    ) -> Iterator[Int[np.ndarray, "h w"]]:
        """The class map at a size, `TILE` rows at a time; counts the area of classes on the way."""
        return _joined(_index_rows(self._measured(track), self.cells[0], size, no_answer(self.classes)), size)

    def _measured(self, track: Callable[[list[int]], Iterable[int]]) -> Iterator[Band]:
        for row in self.rows(track):
            logits, seen = self.bands.leave(row)
            self.area += torch.bincount(logits.argmax(0)[seen], minlength=self.classes)
            yield logits, seen

    def answer(self) -> SlideAnswer:
        found = super().answer()
        shares = {"shares": self.area / self.area.sum().clamp(min=1)}
        return SlideAnswer(found.tiles, found.regions, self.decode(shares, self.slide.source), found.blank)


def _index_rows(
    bands: Iterator[Band], count: int, size: tuple[int, int], none: int
) -> Iterator[Int[np.ndarray, "n W"]]:
    """Classes of the rows of a picture, a few at a time, from bands of a map of `count` rows."""
    held, seen = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    first = end = done = 0  # rows of the map that are held; rows of the picture that are answered
    for logits, known in bands:
        held = logits if end == first else torch.cat([held, logits], 1)
        seen = known if end == first else torch.cat([seen, known])
        end += len(known)
        while done < size[0]:
            rows = range(done, min(done + FEW, size[0]))
            above, below = (int((row + 0.5) * count / size[0] - 0.5) for row in (rows[0], rows[-1]))
            if min(below + 1, count - 1) >= end:
                break
            held, seen, first = held[:, above - first :], seen[above - first :], above
            needed = below + 2 - first
            index = upsampled_argmax(held[:, :needed], size, rows=rows, first=first, count=count).astype(np.int32)
            y = ((np.arange(rows.start, rows.stop) + 0.5) * count / size[0]).astype(int) - first
            x = ((np.arange(size[1]) + 0.5) * seen.shape[1] / size[1]).astype(int)
            index[~seen.numpy()[y[:, None], x]] = none
            yield index
            done = rows.stop


def _joined(parts: Iterator[Int[np.ndarray, "n W"]], size: tuple[int, int]) -> Iterator[Int[np.ndarray, "h W"]]:
    """Strips of `TILE` rows from parts of a few."""
    waiting: list[np.ndarray] = []
    done = 0
    for part in parts:
        waiting.append(part)
        done += len(part)
        if done % TILE == 0 or done == size[0]:
            yield np.concatenate(waiting)
            waiting = []
