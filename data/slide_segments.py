"""Decodes the tiles and strips of large TIFFs: uncompressed and deflated ones by tifffile, all others by Pillow.

Pillow knows JPEG, JPEG 2000, LZW, PackBits, ZSTD and WebP, but only whole files; a segment is made one with a header of
its own.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from polysense.core.errors import InputError

PLAIN = (1, 8, 32946)  # none, deflate and its older number
JPEG, YCBCR = 7, 6
JPEG_2000 = (33003, 33004, 33005, 34712)  # the first holds YCbCr values, which Pillow takes for RGB
# Says that the three channels are RGB; without it JPEG decoders take them for YCbCr.
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def decode_segment(page: Any, number: int, shape: tuple[int, int], source: str) -> np.ndarray:
    """Pixels (h, w) or (h, w, c) of a tile or strip of a page; one that was never written is black.

    Args:
        page: A `tifffile.TiffPage`.
        number: Of the tile or strip.
        shape: Rows and columns of a segment; the last strip has fewer rows.
        source: For messages.

    Raises:
        InputError: It is damaged, or compressed in a way that is not known.
    """
    rows = min(shape[0], page.imagelength - number * shape[0]) if not page.is_tiled else shape[0]
    samples = () if page.samplesperpixel == 1 else (page.samplesperpixel,)
    length = page.databytecounts[number]
    if not length:
        return np.zeros((rows, shape[1], *samples), page.dtype)
    file, compression = page.parent.filehandle, int(page.compression)
    file.seek(page.dataoffsets[number])
    data = file.read(length)
    try:
        if len(data) < length:
            raise ValueError("it ends too early")
        if compression in PLAIN:
            part = page.decode(data, number)[0]
            return np.asarray(part[0]).reshape(part.shape[1:3] + samples)
        image = _image(page, data, (rows, shape[1]), compression)
        return np.asarray(image)[:rows, : shape[1]]
    except Exception as error:  # decoders raise whatever they meet in broken data
        problem = f"a part of it ({page.compression.name}) cannot be decoded ({error})"
        raise InputError(source, problem, "save it as a tiled TIFF with deflate or JPEG compression") from error


def _image(page: Any, data: bytes, shape: tuple[int, int], compression: int) -> Image.Image:
    if compression == JPEG:
        tables = page.jpegtables or b"\xff\xd8\xff\xd9"  # a whole JPEG without pixels; here one without anything
        mark = ADOBE_RGB if page.samplesperpixel == 3 and int(page.photometric) != YCBCR else b""
        return Image.open(io.BytesIO(tables[:2] + mark + tables[2:-2] + data[2:]))
    if compression in JPEG_2000:
        image = Image.open(io.BytesIO(data))
        return image if compression != JPEG_2000[0] else Image.merge("YCbCr", image.split()).convert("RGB")
    if page.bitspersample != 8:
        raise ValueError(f"{page.bitspersample} bits")
    return Image.open(io.BytesIO(_file(page, data, shape, compression)))


def _file(page: Any, data: bytes, shape: tuple[int, int], compression: int) -> bytes:
    """A TIFF of one strip (Adobe 1992, section 2)."""
    samples = page.samplesperpixel
    tags = [(256, shape[1]), (257, shape[0]), (258, 8), (259, compression), (262, int(page.photometric)), (273, 0),
            (277, samples), (278, shape[0]), (279, len(data)), (317, int(page.predictor or 1))]  # fmt: skip
    if samples == 4:
        tags.append((338, 2))  # the fourth is opacity
    bits_at = 8 + 2 + 12 * len(tags) + 4
    body_at = bits_at + 2 * samples
    fields = b""
    for tag, value in tags:
        count = samples if tag == 258 else 1
        if tag == 258 and samples > 2:  # too long for the field: it says where
            value = bits_at
        elif tag == 258:
            value = 8
        elif tag == 273:
            value = body_at
        short = tag in (258, 259, 262, 277, 317, 338)
        packed = (
            struct.pack("<HH", value, 0) if short and not (tag == 258 and samples > 2) else struct.pack("<I", value)
        )
        fields += struct.pack("<HHI", tag, 3 if short else 4, count) + packed
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return header + fields + struct.pack("<I", 0) + struct.pack("<H", 8) * samples + data
