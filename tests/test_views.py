"""Images read at several sizes and mirrored: one answer at the places of the original, and none the worse for it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.data.dataset import BoxTarget
from polysense.heads.detect import DetectionConfig, DetectionHead
from polysense.heads.segment import SegmentationConfig, SegmentationHead
from polysense.heads.tiles import join_cells, merge_windows
from polysense.heads.views import blend_maps, finest_view
from polysense.pipeline import Pipeline
from polysense.tokenizers.image import ImageConfig, ImageTokenizer
from polysense.training.metrics import make_metric

STEP = 16
PATCHES = {"form": "patch", "patch": STEP, "size": 64}


def picture(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tokenizer(**options):
    torch.manual_seed(0)
    return ImageTokenizer(ImageConfig(width=24, **{**PATCHES, **options})).eval()


def pipeline(build, task="image-segmentation", **options):
    head = {"threshold": 0.0} if task == "object-detection" else {}
    return build(task, tokenizer={**PATCHES, "fine": False, **options}, head=head)


def merged(model, source):
    """The head's maps of all sequences joined, and their meta."""
    parts = model.tokenizer.split(model.tokenizer.read(source))
    owner, meta = torch.zeros(len(parts), dtype=torch.int64), [dict(part.meta) for part in parts]
    with torch.no_grad():
        out = model(model.tokenizer.collate(parts))
    return model.head.merge(out, owner, meta), model.head.merge_meta(meta, owner)


def test_split_gives_every_size_plain_and_mirrored():
    both = tokenizer(views=(1.0, 1.5), mirror=True)
    parts = both.split(both.read(picture(64, 64)))
    assert [(p.meta["view"], p.meta["mirror"], p.meta["grid"]) for p in parts] == [
        (0, False, (4, 4)), (1, True, (4, 4)), (2, False, (6, 6)), (3, True, (6, 6))]  # fmt: skip
    for plain, mirrored in (parts[:2], parts[2:]):
        assert torch.equal(plain.data["image"].flip(-1), mirrored.data["image"])
    alone = tokenizer().read(picture(64, 64))
    assert torch.equal(parts[0].data["image"], alone.data["image"])
    assert tokenizer().split(alone) == [alone] and "view" not in alone.meta
    assert {p.meta["window"] for p in parts} == {(0.0, 0.0, 64.0, 64.0)}


def test_windows_of_mirrored_views_know_what_they_cover():
    tiled = tokenizer(resize="tiles", mirror=True)
    source = picture(96, 176)
    parts = tiled.split(tiled.read(source))
    assert len({p.meta["place"] for p in parts}) * 2 == len(parts)
    for part in parts:
        left, top, right, bottom = (round(side) for side in part.meta["window"])
        cut = torch.from_numpy(source[top:bottom, left:right]).permute(2, 0, 1)
        assert torch.equal(part.data["image"], cut.flip(-1) if part.meta["mirror"] else cut)


@pytest.mark.parametrize("options", [{}, {"views": (0.75, 1.0, 1.5)}, {"resize": "tiles"}])
def test_answers_of_a_mirrored_image_are_mirrored(build, options):
    size = (96, 176) if options.get("resize") else (64, 64)
    source = picture(*size)
    model = pipeline(build, mirror=True, **options)
    one, (about,) = merged(model, source)
    other, _ = merged(model, source[:, ::-1])
    # Sizes that do not fit the pixels are resized, which rounds to whole grey values and not quite symmetrically.
    limit = 1e-5 if "views" not in options else 0.1
    torch.testing.assert_close(one["logits"].flip(-1), other["logits"], atol=limit, rtol=0)
    plain, _ = merged(model.with_views(options.get("views", (1.0,))), source)
    assert (plain["logits"] - one["logits"]).abs().max() > 1e-3  # it says something new
    assert about["size"] == size and not about["mirror"]
    index = model(source)[0].index
    assert (
        index.shape == size and (index[:, ::-1] == model(np.ascontiguousarray(source[:, ::-1]))[0].index).mean() > 0.99
    )


def test_boxes_of_a_mirrored_image_are_mirrored(build):
    model, source = pipeline(build, "object-detection", mirror=True, views=(1.0, 2.0)), picture()
    one, other = model(source)[0], model(np.ascontiguousarray(source[:, ::-1]))[0]
    np.testing.assert_allclose(one.scores[:10], other.scores[:10], atol=1e-4)
    turned = np.stack([64 - other.xyxy[:, 2], other.xyxy[:, 1], 64 - other.xyxy[:, 0], other.xyxy[:, 3]], 1)
    for box in one.xyxy[:5]:
        assert np.abs(turned - box).max(1).min() < 0.1


@pytest.mark.parametrize("task", ["image-segmentation", "object-detection", "image-classification", "image-embedding"])
@pytest.mark.parametrize("resize", ["area", "tiles"])
def test_batched_equals_single(build, numbers, task, resize):
    sources = [picture(150, 90, 1), picture(64, 64, 2), picture(50, 230, 3)]
    options = {"threshold": 0.0} if task == "object-detection" else {}
    model = build(task, tokenizer={**PATCHES, "resize": resize, "views": (1.0, 0.7), "mirror": True}, head=options)
    for source, answer in zip(sources, model(sources, batch_size=5), strict=True):
        alone = numbers(model(source)[0])
        if task == "image-segmentation":
            assert answer.index.shape == source.shape[:2] and (numbers(answer)[:-1] == alone[:-1]).mean() > 0.999
        else:
            np.testing.assert_allclose(numbers(answer), alone, atol=2e-3 if task == "object-detection" else 1e-4)


def test_maps_are_averaged_where_they_show_the_same():
    """A ramp read at two sizes and mirrored is the ramp, but for half a cell at the border."""

    def ramp(rows, cols):
        return ((torch.arange(cols) + 0.5) / cols).expand(1, rows, cols).clone()

    meta = [{"grid": (2, 4)}, {"grid": (2, 4), "mirror": True}, {"grid": (4, 8)}, {"grid": (4, 8), "mirror": True}]
    maps = [ramp(4, 8), ramp(4, 8).flip(-1), ramp(8, 16), ramp(8, 16).flip(-1)]
    maps = [torch.nn.functional.pad(one, (0, 16 - one.shape[2], 0, 8 - one.shape[1]), value=9.0) for one in maps]
    assert finest_view(meta) == 2
    torch.testing.assert_close(blend_maps(maps, meta, 2)[..., 1:-1], ramp(8, 16)[..., 1:-1], atol=1e-5, rtol=0)


def test_targets_follow_the_mirrored_view():
    tiled = tokenizer(resize="tiles", mirror=True)
    source = picture(96, 176)
    mask = np.random.default_rng(1).integers(0, 3, source.shape[:2])
    head = SegmentationHead(SegmentationConfig(("a", "b", "c"), channels=8, upsample=4), 24)  # a cell is a pixel
    for part in tiled.split(tiled.read(source)):
        left, top, right, bottom = (round(side) for side in part.meta["window"])
        wanted = mask[top:bottom, left:right]
        found = head.targets([mask], [part.meta])["mask"][0].numpy()
        assert np.array_equal(found, wanted[:, ::-1] if part.meta["mirror"] else wanted)
    boxes = DetectionHead(DetectionConfig(("a",), channels=8), 24)
    meta = {"size": (64, 64), "grid": (4, 4), "mirror": True}
    found = boxes.targets([BoxTarget([[0, 16, 24, 64]], ["a"])], [meta])["boxes"]
    assert found.tolist() == [[[2.5, 1.0, 4.0, 4.0]]]


def shapes(number, size=64):
    """Dark ground with a bright disc and a striped square somewhere, and where they are."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size]
    (cy, cx), (top, left) = rng.integers(14, size - 14, 2), rng.integers(2, size - 26, 2)
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + 24, left : left + 24] = 2
    mask[(y - cy) ** 2 + (x - cx) ** 2 < 144] = 1
    image = rng.normal(70, 25, (size, size, 3))
    image[mask == 1] += [120, 60, 0]
    image[mask == 2] += np.where(x // 3 % 2, 90, -20)[mask == 2][:, None]
    return image.clip(0, 255).astype(np.uint8), mask


def test_views_do_not_hurt_a_head_that_has_seen_such(build):
    torch.manual_seed(0)
    plain = build("image-segmentation", tokenizer={"form": "patch", "patch": 8, "size": 64, "fine": True})
    views = plain.with_views((1.0, 1.25), mirror=True)
    seen = [(part, mask) for image, mask in map(shapes, range(10))
            for part in views.tokenizer.split(views.tokenizer.read(image))]  # fmt: skip
    batch = views.tokenizer.collate([part for part, _ in seen])
    target = views.head.targets([mask for _, mask in seen], batch["meta"])
    with torch.no_grad():
        read = views.features(batch)
    optimiser = torch.optim.AdamW(views.head.parameters(), 5e-3)
    views.head.train()
    for _ in range(20):
        optimiser.zero_grad()
        views.head.loss(views.head(read), target)["loss"].backward()
        optimiser.step()
    views.head.eval()

    def miou(one):
        metric = make_metric("segmentation", ("a", "b", "c"))
        for image, mask in map(shapes, range(100, 120)):
            metric.update(one(image)[0], mask)
        return metric.compute()["miou"]

    before, after = miou(plain), miou(views)
    print(f"once {before:.3f}, in four views {after:.3f}")
    assert before > 0.6 and after > before - 0.01


def test_other_heads_average_their_outputs(build):
    model = build("image-classification", tokenizer={**PATCHES, "mirror": True})
    source = picture()
    plain = model.with_views()
    with torch.no_grad():
        pair = [plain(plain.tokenizer.collate([plain.tokenizer.read(one)])) for one in (source, source[:, ::-1])]
    mean = (pair[0]["logits"] + pair[1]["logits"]) / 2
    answer = model(source)[0]
    scores = dict(zip(answer.names, answer.scores, strict=True))
    assert [scores[name] for name in ("a", "b", "c")] == pytest.approx(mean.softmax(-1)[0].tolist(), abs=1e-5)


def test_views_share_weights_and_leave_the_pipeline_as_it_is(build):
    model = pipeline(build)
    viewed = model.with_views([1, 1.5], mirror=True)
    assert viewed.tokenizer.config.views == (1, 1.5) and viewed.tokenizer.config.mirror
    assert model.tokenizer.config.views == (1.0,) and not model.tokenizer.config.mirror
    assert viewed.head is model.head and viewed.tokenizer.proj is model.tokenizer.proj
    assert not viewed.with_views().tokenizer.config.mirror


def test_bundles_keep_views_and_older_ones_have_none(build, encoder_spec, tmp_path):
    model = build("image-segmentation", encoder_spec, tokenizer={**PATCHES, "views": [1.0, 0.5], "mirror": True})
    loaded = Pipeline.from_pretrained(model.save_pretrained(tmp_path / "bundle"))
    assert loaded.tokenizer.config == model.tokenizer.config and loaded.tokenizer.config.views == (1.0, 0.5)
    assert np.array_equal(loaded(picture())[0].index, model(picture())[0].index)
    older = {
        k: v for k, v in json.loads(json.dumps(model.tokenizer.config_dict())).items() if k not in ("views", "mirror")
    }
    assert ImageConfig(**older) == replace(model.tokenizer.config, views=(1.0,), mirror=False)


def test_what_cannot_be_is_one_sentence(build):
    with pytest.raises(InputError, match="only images are read in views"):
        build("audio-classification").with_views(mirror=True)
    for views in ((), (0.0,), (1.0, float("inf"))):
        with pytest.raises(InputError, match="positive shares of the size"):
            pipeline(build).with_views(views)
    meta = [{"grid": (2, 2), "view": i, "mirror": bool(i), "source": "a.png"} for i in range(2)]
    with pytest.raises(InputError, match=r"a.png: this head cannot join the answers of several views"):
        merge_windows({"x": torch.zeros(2, 1)}, torch.zeros(2, dtype=torch.int64), meta, join_cells)


def test_fitting_draws_views_and_the_command_line_sets_them(quick, tmp_path, monkeypatch):
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(8):
        image, mask = shapes(i)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    (tmp_path / "data" / "classes.txt").write_text("ground\ndisc\nsquare\n")
    front = {**PATCHES, "fine": False, "views": [1.0, 0.5], "mirror": True}
    _, model = quick("image-segmentation", tmp_path / "data", epochs=1, tokenizer_options=front,
                     head_options={"channels": 8})  # fmt: skip
    assert model.tokenizer.config.mirror
    monkeypatch.chdir(tmp_path)
    source = "data/images/0.png"

    def answer(*options):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["predict", "bundle", source, "--out", "a.jsonl", *options])
        assert stopped.value.code == 0
        return json.loads((tmp_path / "a.jsonl").read_text())["confidence"]

    assert answer("--views", "1,1.5") == pytest.approx(model.with_views((1, 1.5))(source)[0].confidence, abs=1e-5)
    assert answer() == pytest.approx(model(source)[0].confidence, abs=1e-5)
    assert answer("--mirror") == pytest.approx(model.with_views(mirror=True)(source)[0].confidence, abs=1e-5)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", "bundle", source, "--views", "big"])
    assert stopped.value.code == 2
