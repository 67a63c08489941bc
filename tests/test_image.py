"""Images: reading every kind of file and array. The tokenizer has its own file, test_image_tokens.py."""

from __future__ import annotations

import io
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polysense.core.errors import InputError
from polysense.data.image import IMAGE_ENDINGS, describe_source, read_image, read_image_sized

LOSSLESS = [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
LOSSY = [("JPEG", {"quality": 95}), ("JPEG", {"progressive": True}), ("WEBP", {"quality": 95}), ("GIF", {})]


def picture(height: int = 30, width: int = 40) -> Image.Image:
    """Smooth, and different in all four corners and all three channels."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * y / (height - 1), 255 * x / (width - 1)
    return Image.fromarray(np.stack([red, green, 255 - red / 2 - green / 2], -1).astype(np.uint8))


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size and a.mode == b.mode == "RGB"
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_lossless_formats(form: str, options: dict[str, Any]) -> None:
    assert difference(read_image(encode(picture(), form, **options)), picture()) == 0


@pytest.mark.parametrize(("form", "options"), LOSSY)
def test_lossy_formats(form: str, options: dict[str, Any]) -> None:
    assert difference(read_image(encode(picture(), form, **options)), picture()) < 12


def test_ending_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really_png.jpg"
    path.write_bytes(encode(picture(), "PNG"))
    assert difference(read_image(path), picture()) == 0
    assert difference(read_image(str(path)), picture()) == 0
    assert path.suffix in IMAGE_ENDINGS and all(e == e.lower() and e[0] == "." for e in IMAGE_ENDINGS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_orientation_is_applied(orientation: int, form: str) -> None:
    # How a camera would store the upright picture under each orientation (EXIF 2.3, 4.6.4): the inverse transform.
    stored = {
        1: picture(),
        2: picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: picture().transpose(Image.Transpose.ROTATE_180),
        4: picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: picture().transpose(Image.Transpose.TRANSPOSE),
        6: picture().transpose(Image.Transpose.ROTATE_90),
        7: picture().transpose(Image.Transpose.TRANSVERSE),
        8: picture().transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, size = read_image_sized(encode(stored, form, exif=exif))
    assert size == (30, 40)
    assert difference(image, picture()) < 6


def test_broken_metadata_does_not_hide_the_picture() -> None:
    assert read_image(encode(picture(), "JPEG", exif=b"Exif\0\0garbage")).size == (40, 30)


def test_target_shrinks_large_jpegs_and_keeps_the_true_size() -> None:
    large = picture().resize((1600, 1200))
    exif = Image.Exif()
    exif[0x0112] = 6
    image, size = read_image_sized(encode(large, "JPEG", exif=exif), target=100)
    assert size == (1600, 1200) and image.size == (150, 200)
    assert read_image(encode(large, "JPEG"), target=1600).size == (1600, 1200)
    assert read_image(encode(large, "PNG"), target=100).size == (1600, 1200)


def test_pil_images_are_left_as_they_are() -> None:
    lazy = Image.open(io.BytesIO(encode(picture().resize((1600, 1200)), "JPEG")))
    assert read_image(lazy, target=50).size == lazy.size == (1600, 1200)
    given = picture()
    copy = read_image(given)
    copy.paste("black", (0, 0, 40, 30))
    assert difference(given, picture()) == 0


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 128))
    assert read_image(encode(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = read_image(encode(half, "PNG")).getpixel((0, 0))  # type: ignore[misc]
    assert abs(red - 227) <= 1 and abs(green - 127) <= 1 and abs(blue - 127) <= 1
    assert read_image(Image.new("LA", (4, 4), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(np.zeros((4, 4, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(form: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 2, 2))
    rgb = read_image(encode(image, form, transparency=0))
    assert rgb.getpixel((0, 0)) == (255, 255, 255) and rgb.getpixel((3, 0)) == (200, 100, 50)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form: str) -> None:  # Adobe's JPEGs hold inverted inks, TIFFs do not
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = read_image(encode(cmyk, form)).getpixel((8, 8))  # type: ignore[misc]
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize(("mode", "value", "expected"), [("1", 1, 255), ("L", 77, 77), ("LA", (77, 255), 77)])
def test_grey_modes(mode: str, value: Any, expected: int) -> None:
    assert read_image(encode(Image.new(mode, (4, 4), value), "PNG")).getpixel((1, 1)) == (expected,) * 3


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_its_full_range(form: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for source in (encode(Image.fromarray(values), form), values, torch.from_numpy(values)):
        assert np.asarray(read_image(source))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_grey_is_stretched(kind: type) -> None:
    values = np.array([[-51, 0, 204]], kind)
    assert np.asarray(read_image(encode(Image.fromarray(values), "TIFF")))[0, :, 1].tolist() == [0, 51, 255]
    flat = Image.fromarray(np.full((2, 2), 7, kind))
    assert np.asarray(read_image(encode(flat, "TIFF"))).max() == 0


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_arrays_and_tensors_agree() -> None:
    pixels = np.asarray(picture())
    expected = read_image(pixels)
    assert difference(expected, picture()) == 0
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for same in (
        tensor,
        tensor.float() / 255,
        pixels / 255,
        pixels.astype(np.float32) / 255,
        pixels[..., ::-1][..., ::-1],
    ):
        assert difference(read_image(same), expected) == 0
    assert difference(read_image((tensor / 255).bfloat16()), expected) < 1
    grey = pixels[..., 0]
    for same in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(read_image(same)), np.repeat(grey[..., None], 3, 2))
    assert np.asarray(read_image(np.eye(3, dtype=bool)))[0, :, 0].tolist() == [255, 0, 0]


def test_file_objects(tmp_path: Path) -> None:
    data = encode(picture(), "PNG")
    assert difference(read_image(io.BytesIO(data)), picture()) == 0
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        assert difference(read_image(file), picture()) == 0
        assert describe_source(file).endswith("a.png")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize(("form", "options"), [*LOSSLESS, *LOSSY])
def test_truncated_files_are_refused(form: str, options: dict[str, Any], share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    data = encode(noise, form, **options)
    with pytest.raises(InputError, match=r"damaged|not an image"):
        read_image(data[: int(len(data) * share)])
    if form == "JPEG":
        with pytest.raises(InputError, match="damaged"):
            read_image(data[: int(len(data) * 0.9)], target=8)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than there is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_decoding() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="50000 × 50000 pixels"):
        read_image(bomb(50_000, 50_000))
    with pytest.raises(InputError, match="cut short"):  # 100 million pixels are allowed, and warn nobody
        read_image(bomb(10_000, 10_000))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillows_limit_comes_back_after_many_threads() -> None:
    limit, data = Image.MAX_IMAGE_PIXELS, encode(picture(), "JPEG")
    threads = [threading.Thread(target=lambda: [read_image(data) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit is not None and limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "the file is empty"),
        (b"plain text, no picture", "not an image"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((3, 40, 40), np.uint8), "not an image"),
        (np.zeros((0, 4, 3), np.uint8), "not an image"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4), np.nan), "not numbers"),
        (np.full((4, 4), 128.0), "from 128 to 128"),
        (torch.zeros(2, 3, 8, 8), "not an image"),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "not numbers"),
        (12, "cannot be read from this type"),
        ("a\0b", "cannot be opened"),
    ],
)
def test_errors_say_what_is_wrong(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(source)


def test_errors_of_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.png: there is no such file; check the path\."):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="this is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
