"""Large images in windows: the same answers as from the whole where windows see enough, and no seams."""

import numpy as np
import pytest
import torch

from polysense.core.types import Features, Tokens
from polysense.heads.base import cat_padded
from polysense.heads.detect import DetectionConfig, DetectionHead
from polysense.heads.segment import SegmentationConfig, SegmentationHead
from polysense.heads.tiles import own_cells, stitch
from polysense.pipeline import Pipeline
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.tokenizers.image_grid import OVERLAP, window_starts


def tiled(size=64, step=16):
    torch.manual_seed(0)
    return ImageTokenizer(ImageConfig(width=24, form="patch", patch=step, size=size, resize="tiles")).eval()


def metas(rows, cols, side):
    return [{"place": (r, c), "whole": (rows, cols), "grid": (min(side, rows), min(side, cols)), "source": "big",
             "size": (rows * 16, cols * 16)}
            for r in window_starts(rows, side) for c in window_starts(cols, side)]  # fmt: skip


@pytest.mark.parametrize(("length", "window"), [(3, 8), (8, 8), (9, 8), (40, 8), (41, 8), (2, 1), (17, 4)])
def test_windows_cover_everything_and_overlap(length, window):
    starts = window_starts(length, window)
    assert starts[0] == 0 and max(starts[-1] + window, length) == max(length, window)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= max(1, round(window * (1 - OVERLAP)))).all()


def test_tokenizer_cuts_large_images_and_leaves_small_ones():
    tokenizer = tiled()
    picture = np.random.default_rng(0).integers(0, 256, (150, 230, 3), dtype=np.uint8)
    whole = tokenizer.read(picture)
    assert whole.meta["grid"] == (9, 14) and whole.meta["size"] == (150, 230)
    windows = tokenizer.split(whole)
    seen = np.zeros((9, 14), int)
    for one in windows:
        (row, col), (rows, cols) = one.meta["place"], one.meta["grid"]
        assert one.data["image"].shape == (3, rows * 16, cols * 16) and one.meta["whole"] == (9, 14)
        seen[row : row + rows, col : col + cols] += 1
        cut = whole.data["image"][:, row * 16 : (row + rows) * 16, col * 16 : (col + cols) * 16]
        assert torch.equal(one.data["image"], cut)
        left, top, right, bottom = one.meta["window"]
        assert (left, top) == pytest.approx((col * 230 / 14, row * 150 / 9))
        assert (right, bottom) == pytest.approx(((col + cols) * 230 / 14, (row + rows) * 150 / 9))
    assert (seen > 0).all()
    small = tokenizer.read(picture[:50, :60])
    assert tokenizer.split(small) == [small] and small.meta["grid"] == (3, 4)


def test_stitched_maps_are_the_map():
    """Windows cut out of one map give it back, whatever stands in their padding."""
    whole = torch.randn(3, 2 * 9, 2 * 14, generator=torch.Generator().manual_seed(0))
    about = metas(9, 14, 4)
    maps = []
    for one in about:
        (row, col), (rows, cols) = one["place"], one["grid"]
        part = torch.full((3, 10, 12), 1e6)
        part[:, : 2 * rows, : 2 * cols] = whole[:, 2 * row : 2 * (row + rows), 2 * col : 2 * (col + cols)]
        maps.append(part)
    torch.testing.assert_close(stitch(maps, about, 2), whole)


def test_there_is_no_seam_between_windows_that_disagree():
    """From one window's answer to the next one's the map goes in small steps."""
    about = metas(4, 20, 8)
    maps = [torch.full((1, 4, 8), float(i)) for i in range(len(about))]
    across = stitch(maps, about, 1)[0, 0]
    assert across[0] == 0 and across[-1] == len(about) - 1
    assert (across.diff() >= 0).all() and across.diff().max() < 0.8


def test_each_cell_belongs_to_one_window():
    for rows, cols, side in ((9, 14, 4), (4, 20, 8), (3, 5, 8), (16, 16, 4)):
        about, owned = metas(rows, cols, side), np.zeros((rows, cols), int)
        for one in about:
            ys, xs = np.mgrid[0 : one["grid"][0], 0 : one["grid"][1]]
            centers = torch.tensor(np.stack([xs.ravel(), ys.ravel()], 1) + 0.5)
            mine = own_cells(centers, one, about).numpy().reshape(ys.shape)
            owned[one["place"][0] :, one["place"][1] :][: ys.shape[0], : ys.shape[1]] += mine
        assert (owned == 1).all()


def test_a_cell_belongs_to_the_window_whose_border_is_farther():
    left, right = metas(4, 6, 4)
    centers = torch.tensor([[0.5, 2.0], [2.5, 2.0], [3.5, 2.0]])
    assert own_cells(centers, left, [left, right]).tolist() == [True, True, False]


def test_joined_detections_lie_where_they_are_and_once():
    """An object in the overlap of windows, seen by each of them, is answered once, in pixels of the original."""
    head = DetectionHead(DetectionConfig(("a",), channels=8, levels=1), 24).eval()
    about, objects = metas(4, 10, 4), [(1.0, 1.0, 3.0, 3.0), (4.2, 0.5, 5.6, 2.5), (8.0, 1.0, 9.5, 3.5)]
    outs = []
    for one in about:
        row, col = one["place"]
        ys, xs = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        centers = torch.stack([xs, ys], -1).view(-1, 2) + 0.5
        logits, boxes = torch.full((16, 1), -9.0), torch.zeros(16, 4)
        for box in torch.tensor(objects):
            own = box - torch.tensor([col, row, col, row])
            near = (centers - (own[:2] + own[2:]) / 2).abs().amax(1) < 0.51
            logits[near], boxes[near] = 4.0, own
        outs.append({"logits": logits, "boxes": boxes, "centers": centers, "valid": torch.ones(16, dtype=torch.bool)})
    out = {name: torch.stack([one[name] for one in outs]) for name in outs[0]}
    owner = torch.zeros(len(about), dtype=torch.int64)
    (answer,) = head.decode(head.merge(out, owner, about), head.merge_meta(about, owner))
    assert answer.size == (64, 160) and len(answer.labels) == 3
    order = np.argsort(answer.xyxy[:, 0])
    np.testing.assert_allclose(answer.xyxy[order], 16 * np.array(objects), atol=1e-4)


def test_merged_heads_answer_for_the_whole_image_and_for_mixed_batches():
    """One large image beside small ones: each is answered at its own size, as alone."""
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((150, 230), (50, 60), (100, 300))]
    for task, options in (("image-segmentation", {"classes": ("a", "b"), "channels": 8}),
                          ("object-detection", {"classes": ("a",), "channels": 8, "threshold": 0.0})):  # fmt: skip
        front = {"form": "patch", "patch": 16, "size": 64, "resize": "tiles"}
        pipeline = Pipeline.build(task, encoder="random:vit_tiny_patch16_224", tokenizer=front, head=options).eval()
        together = pipeline(pictures, batch_size=5)
        for picture, answer in zip(pictures, together, strict=True):
            alone = pipeline([picture], batch_size=3)[0]
            if task == "image-segmentation":
                assert answer.index.shape == picture.shape[:2]
                assert (answer.index == alone.index).mean() > 0.999
            else:
                assert answer.size == picture.shape[:2]
                np.testing.assert_allclose(answer.scores[:20], alone.scores[:20], atol=1e-4)


def test_one_window_is_answered_as_ever():
    head = SegmentationHead(SegmentationConfig(("a", "b"), channels=8), 24).eval()
    tokens = Tokens(torch.randn(2, 6, 24), None, torch.zeros(2, 6, 2), (2, 3))
    out = head(Features(tokens))
    assert head.merge(out, torch.arange(2), [{}, {}]) is out


def test_joining_pads_with_zeros():
    joined = cat_padded([torch.ones(1, 2, 3), torch.ones(2, 4, 1)])
    assert joined.shape == (3, 4, 3) and joined.sum() == 6 + 8
