"""Pictures too large to decode at once: read by regions, answered by tiles, mapped without seams, in little memory."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from polysense.apps import cli
from polysense.core.errors import InputError
from polysense.data.slide_maps import TILE
from polysense.data.slides import is_blank, open_slide
from polysense.slides import _DensePass, read_slide

STEP = 16
FRONT = {"form": "patch", "patch": STEP, "size": 64, "fine": False, "resize": "tiles"}


def picture(height, width, seed=0):
    """Smooth colours with some noise: JPEG's losses stay small."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return (np.asarray(small, np.int16) + rng.integers(-4, 5, (height, width, 3))).clip(0, 255).astype(np.uint8)


def write_tiled(path, array, **options):
    tifffile.imwrite(path, array, tile=(64, 80), compression="zlib", photometric="rgb", **options)
    return path


@pytest.fixture
def segmenter(build):
    return build("image-segmentation", tokenizer=FRONT)


# --- reading ----------------------------------------------------------------------------------------------------------


def stored(kind, tmp_path):
    """A picture in a file, and what its pixels are."""
    pixels, path = picture(150, 230), tmp_path / "a.tif"
    if kind == "tiles":
        write_tiled(path, pixels)
    elif kind == "bigtiff":
        write_tiled(path, pixels, bigtiff=True, byteorder=">")
    elif kind == "predictor":
        write_tiled(path, pixels, predictor=True)
    elif kind == "strips":
        tifffile.imwrite(path, pixels, rowsperstrip=7, photometric="rgb")
    elif kind == "grey16":
        tifffile.imwrite(path, pixels[..., 0].astype(np.uint16) * 257, tile=(64, 64))
        pixels = np.repeat(pixels[..., :1], 3, 2)
    elif kind == "png":
        path = path.with_suffix(".png")
        Image.fromarray(pixels).save(path)
    elif kind == "grey-lzw":
        Image.fromarray(pixels[..., 0]).save(path, compression="tiff_lzw")
        pixels = np.repeat(pixels[..., :1], 3, 2)
    elif kind == "opaque-lzw":
        Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])).save(
            path, compression="tiff_lzw"
        )
    else:
        Image.fromarray(pixels).save(path, compression=kind)
        pixels = np.asarray(Image.open(path).convert("RGB"))
    return path, pixels


@pytest.mark.parametrize("kind", ["tiles", "bigtiff", "predictor", "strips", "grey16", "png", "grey-lzw", "opaque-lzw",
                                  "tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate"])  # fmt: skip
def test_regions_are_those_of_the_whole(kind, tmp_path):
    path, pixels = stored(kind, tmp_path)
    with open_slide(path) as slide:
        assert slide.size == (150, 230) and slide.source == str(path)
        for left, top, right, bottom in ((0, 0, 230, 150), (0, 0, 1, 1), (60, 60, 100, 70), (79, 63, 230, 150)):
            found = slide.read((left, top, right, bottom), (bottom - top, right - left))
            assert np.array_equal(found, pixels[top:bottom, left:right])
        once = Image.fromarray(pixels).resize((92, 60), Image.Resampling.BILINEAR)
        part = slide.read((40 * 2.5, 20 * 2.5, 70 * 2.5, 45 * 2.5), (25, 30))
        assert np.abs(part.astype(int) - np.asarray(once)[20:45, 40:70]).max() <= 1


def test_jpeg_tiles_in_both_kinds_of_colour(tmp_path):
    """As scanners write them: one set of tables for all tiles, the channels RGB or YCbCr."""
    pixels = picture(128, 128)
    for photometric in (2, 6):
        path = tmp_path / f"{photometric}.tif"
        write_jpeg_tiles(path, pixels, photometric)
        with open_slide(path) as slide:
            found = slide.read((0, 0, 128, 128), (128, 128)).astype(int)
        assert np.abs(found - pixels).mean() < 4, photometric


def write_jpeg_tiles(path, pixels, photometric, side=64):
    """Tiles as JPEG streams; in RGB the bands are encoded as they are, which Pillow does where it is told so."""
    import io

    tiles = []
    for top in range(0, len(pixels), side):
        for left in range(0, pixels.shape[1], side):
            image, stream = Image.fromarray(pixels[top : top + side, left : left + side]), io.BytesIO()
            image.save(stream, "JPEG", quality=95, subsampling=0, keep_rgb=photometric == 2)
            data = stream.getvalue()
            if photometric == 2:  # the marker that says so is what such slides lack
                at = data.index(b"Adobe") - 4
                data = data[:at] + data[at + 16 :]
            tiles.append(data)
    import struct

    count = len(tiles)
    tags = [
        (256, 4, [pixels.shape[1]]),
        (257, 4, [len(pixels)]),
        (258, 3, [8] * 3),
        (259, 3, [7]),
        (262, 3, [photometric]),
        (277, 3, [3]),
        (322, 4, [side]),
        (323, 4, [side]),
        (324, 4, None),
        (325, 4, [len(t) for t in tiles]),
    ]
    extra_at = 8 + 2 + 12 * len(tags) + 4
    body_at = extra_at + 6 + 2 * 4 * count
    offsets = [body_at + sum(map(len, tiles[:i])) for i in range(count)]
    fields, extra = b"", b""
    for tag, kind, values in tags:
        values = offsets if values is None else values
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            value, extra = struct.pack("<I", extra_at + len(extra)), extra + packed
        else:
            value = packed.ljust(4, b"\0")
        fields += struct.pack("<HHI", tag, kind, len(values)) + value
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + fields + bytes(4) + extra + b"".join(tiles))


def test_reduced_copies_are_read_where_they_suffice(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (64, 64), "photometric": "rgb"}
        writer.write(np.full((256, 384, 3), 10, np.uint8), subifds=2, **options)
        for shrink, value in ((2, 20), (4, 40)):
            writer.write(np.full((256 // shrink, 384 // shrink, 3), value, np.uint8), subfiletype=1, **options)
    with open_slide(path) as slide:
        for size, value in (
            ((64, 64), 10),
            ((33, 33), 10),
            ((32, 32), 20),
            ((17, 17), 20),
            ((16, 16), 40),
            ((4, 4), 40),
        ):
            assert (slide.read((64, 64, 128, 128), size) == value).all()


def test_segments_that_were_never_written_are_black(tmp_path):
    """As scanners leave out what they did not scan."""
    tiles = iter([np.full((64, 64), 9, np.uint8), None, None, np.full((64, 64), 7, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(128, 128), dtype=np.uint8, tile=(64, 64), compression="zlib")
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read((0, 0, 128, 128), (128, 128))[..., 0]
    assert (found[:64, :64] == 9).all() and (found[64:, 64:] == 7).all() and (found[:64, 64:] == 0).all()


def test_bad_slides_are_one_sentence(tmp_path):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, np.zeros((20, 20, 3), np.float32), photometric="rgb")
    with pytest.raises(InputError, match=r"bad.tif: its pixels \(3 × float32, RGB\) are no grey or RGB values"):
        open_slide(path)
    whole = write_tiled(path, picture(200, 200)).read_bytes()
    path.write_bytes(whole[:-3000])
    with pytest.raises(InputError, match=r"bad\.tif: "), open_slide(path) as slide:
        slide.read((0, 0, 200, 200), (200, 200))
    path.write_bytes(whole[:30])
    with pytest.raises(InputError, match=r"bad\.tif: the TIFF is damaged"):
        open_slide(path)
    with pytest.raises(InputError, match="there is no such file"):
        open_slide(tmp_path / "none.tif")
    tifffile.imwrite(path, shape=(20_000, 20_000), dtype=np.uint8, rowsperstrip=20_000)
    with pytest.raises(InputError, match=r"pieces of 20000 × 20000 pixels, too large.*save it as a tiled TIFF"):
        open_slide(path)


def test_blank_is_flat_and_light_or_dark():
    rng = np.random.default_rng(0)
    glass = (235 + rng.normal(0, 2, (64, 64, 3))).astype(np.uint8)
    assert is_blank(glass) and is_blank(np.zeros((8, 8, 3), np.uint8))
    tissue = glass.copy()
    tissue[:10, :10] = (180, 90, 150)  # 2.4% of it
    assert not is_blank(tissue)
    assert not is_blank(np.full((8, 8, 3), (20, 40, 90), np.uint8))  # water
    assert not is_blank(picture(64, 64))


# --- answering --------------------------------------------------------------------------------------------------------


def bands_of(model, source):
    """The map of a slide as its bands come, joined."""
    with open_slide(source) as slide, torch.inference_mode():
        run = _DensePass(model, slide, 1.0, 8, True, 5)
        tops = [run.bands.leave(row) for row in run.rows(iter)]
    assert all(seen.all() for _, seen in tops) and len(tops) > 3
    return torch.cat([logits for logits, _ in tops], 1)


@pytest.mark.parametrize("size", [(320, 400), (309, 411)])
def test_bands_join_to_the_map_that_is_made_in_one_go(segmenter, tmp_path, size):
    source = picture(*size)
    path = write_tiled(tmp_path / "a.tif", source)
    parts = segmenter.tokenizer.split(segmenter.tokenizer.read(source))
    with torch.inference_mode():
        out, meta = segmenter._run(parts)
        whole = segmenter.head.merge(out, torch.zeros(len(parts), dtype=torch.int64), meta)["logits"][0]
    # Where the size is no multiple of the step, regions are resized by themselves: a few pixels round differently.
    torch.testing.assert_close(bands_of(segmenter, path), whole, atol=1e-4 if size[0] == 320 else 0.05, rtol=0)
    read_slide(segmenter, path, tmp_path / "map.tif", keep_blank=True)
    found, once = tifffile.imread(tmp_path / "map.tif"), segmenter(source)[0].index
    assert found.dtype == np.uint8 and found.shape == size
    assert (found == once).mean() > (0.9999 if size[0] == 320 else 0.99)


def test_map_at_the_resolution_of_the_answer(segmenter, tmp_path):
    source = picture(320, 400)
    read_slide(segmenter, source, tmp_path / "map.tif", cells=True, keep_blank=True)
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        page = tiff.pages[0]
        assert page.shape == (80, 100) and page.is_tiled and page.compression.name == "ADOBE_DEFLATE"
    assert np.array_equal(tifffile.imread(tmp_path / "map.tif"), bands_of(segmenter, source).argmax(0).numpy())


def test_blank_tiles_are_left_out_and_are_no_class(segmenter, tmp_path):
    source = picture(320, 640)
    source[:, 320:] = 240
    answer = read_slide(segmenter, source, tmp_path / "map.tif", cells=True)
    everything = read_slide(segmenter, source, keep_blank=True)
    assert answer.blank > 0 and len(answer.tiles) + answer.blank == len(everything.tiles) and everything.blank == 0
    found = tifffile.imread(tmp_path / "map.tif")
    assert (found[:, 96:] == 255).all() and (found[:, :80] < 3).all()
    shares = np.bincount(found[found != 255], minlength=3) / (found != 255).sum()
    said = dict(zip(answer.slide.names, answer.slide.scores, strict=True))
    assert [said[name] for name in "abc"] == pytest.approx(shares.tolist(), abs=1e-6)
    with pytest.raises(InputError, match="all its tiles are blank"):
        read_slide(segmenter, np.full((200, 200, 3), 240, np.uint8))


def test_tiles_and_regions_say_what_is_where(segmenter):
    source = picture(256, 512)
    answer = read_slide(segmenter, source, regions=4, keep_blank=True)
    index = segmenter(source)[0].index
    assert len(answer.regions) == 8 and answer.regions[0].source == "<ndarray>#0,0,128,128"
    assert [region.source.split("#")[1] for region in answer.regions[-1:]] == ["384,128,512,256"]
    for tile in answer.tiles:
        left, top, right, bottom = map(int, tile.source.split("#")[1].split(","))
        assert (right - left, bottom - top) == (64, 64)
    for part in answer.regions:
        left, top, right, bottom = map(int, part.source.split("#")[1].split(","))
        shares = np.bincount(index[top:bottom, left:right].ravel(), minlength=3) / 128**2
        # Tiles of a region overlap, and reach beyond it; most of what they say is of it.
        assert abs(dict(zip(part.names, part.scores, strict=True))["abc"[shares.argmax()]] - shares.max()) < 0.35
        assert sum(part.scores) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("task", ["image-classification", "image-embedding", "image-regression"])
def test_heads_of_whole_images_answer_tiles_and_their_mean(build, numbers, task):
    model, source = build(task, tokenizer={**FRONT, "resize": "area"}), picture(128, 192)
    answer = read_slide(model, source, regions=1, batch_size=4)
    cut = [source[top : top + 64, left : left + 64] for top in (0, 64) for left in (0, 64, 128)]
    for tile, alone in zip(answer.tiles, model(cut), strict=True):
        np.testing.assert_allclose(numbers(tile), numbers(alone), atol=1e-5)
    parts = [model.tokenizer.read(one) for one in cut]
    np.testing.assert_allclose(numbers(answer.slide), numbers(model.predict_sequences([parts])[0]), atol=1e-5)
    np.testing.assert_allclose(numbers(answer.regions[0]), numbers(answer.slide), atol=1e-5)


def test_a_slide_is_read_at_a_share_of_its_size(segmenter, tmp_path):
    answer = read_slide(segmenter, picture(256, 512), tmp_path / "map.tif", scale=0.5, keep_blank=True)
    assert len(answer.tiles) == 3 * 5 and answer.tiles[0].source.endswith("#0,0,128,128")
    assert tifffile.imread(tmp_path / "map.tif").shape == (256, 512)


def test_what_cannot_be_is_one_sentence(build, segmenter, tmp_path):
    source = picture(64, 64)
    with pytest.raises(InputError, match="object-detection: it has no answer for slides"):
        read_slide(build("object-detection"), source)
    with pytest.raises(InputError, match="it draws no map"):
        read_slide(build("image-classification"), source, tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"end the name with \.tif"):
        read_slide(segmenter, source, tmp_path / "a.png")
    with pytest.raises(InputError, match="its folder does not exist"):
        read_slide(segmenter, source, tmp_path / "none" / "a.tif")
    with pytest.raises(InputError, match="both must be more than 0"):
        read_slide(segmenter, source, scale=0)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_map_leaves_what_stood_there(segmenter, tmp_path, monkeypatch):
    (tmp_path / "map.tif").write_text("before")
    monkeypatch.setattr(type(segmenter), "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
    with pytest.raises(RuntimeError, match="stopped"):
        read_slide(segmenter, picture(128, 128), tmp_path / "map.tif")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_command_line(build, encoder_spec, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build("image-segmentation", encoder_spec, tokenizer=FRONT).save_pretrained("bundle")
    write_tiled(tmp_path / "slide.tif", picture(150, 230))
    cli_run("slide", "bundle", "slide.tif", "--out", "map.tif", "--answers", "a.jsonl", "--regions", "2")
    assert tifffile.imread("map.tif").shape == (150, 230)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    shown = capsys.readouterr()
    assert rows[-1]["source"] == "slide.tif" and shown.out.startswith("slide.tif\t")
    assert shown.err.strip().endswith(f"{len(rows) - 1 - 4} tiles, 4 regions")


def cli_run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert not stopped.value.code


# --- memory -----------------------------------------------------------------------------------------------------------


def write_large(path, side, tile=512):
    """A tiled TIFF of side × side pixels that was never in memory."""
    across = -(-side // tile)

    def tiles():
        base = picture(tile, tile)
        for i in range(across**2):
            yield np.roll(base, 37 * i, (0, 1))

    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(tile, tile), compression="zlib",
                     compressionargs={"level": 1}, photometric="rgb", bigtiff=True)  # fmt: skip


def test_little_memory(build, tmp_path, monkeypatch):
    """13 MB of pixels, of which the tiles that a row of windows wants are kept, and a few rows of the map."""
    monkeypatch.setattr("polysense.data.slides.CACHE", 2_000_000)
    write_large(tmp_path / "large.tif", 2048, 128)
    model = build("image-segmentation", tokenizer={**FRONT, "size": 256, "patch": 64})
    tracemalloc.start()
    read_slide(model, tmp_path / "large.tif", tmp_path / "map.tif", batch_size=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 11e6 and tifffile.imread(tmp_path / "map.tif").shape == (2048, 2048)


MEASURED = """
import resource, sys, torch
torch.set_num_threads(1)
from polysense.pipeline import Pipeline
from polysense.slides import read_slide
model = Pipeline.from_pretrained(sys.argv[1])
model("{warm}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_slide(model, sys.argv[2], sys.argv[3], batch_size=4)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_of_400_million_pixels(build, encoder_spec, tmp_path):
    """1.2 GB of pixels and 400 MB of map; what is held is segments, four tiles with their features, and a band."""
    write_large(tmp_path / "large.tif", 20_000)
    front = {**FRONT, "size": 1024, "patch": 64}
    build("image-segmentation", encoder_spec, tokenizer=front).save_pretrained(tmp_path / "bundle")
    Image.fromarray(picture(64, 64)).save(tmp_path / "warm.png")
    code = MEASURED.format(warm=tmp_path / "warm.png")
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("bundle", "large.tif", "map.tif"))]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{grown / 1e6:.0f} MB more")
    assert grown < 500e6
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        assert tiff.pages[0].shape == (20_000, 20_000) and tiff.pages[0].tilewidth == TILE
