"""Reads images: whatever the file or array, out comes an upright 8-bit RGB picture.

The content decides about the format, never the file's ending. Conversions: EXIF orientation is applied; transparency is
laid on white; 16-bit grey is divided by 257 (its full range); 32-bit grey (PIL modes "I" and "F") is stretched from its
own minimum to its maximum; animations give their first frame.

Shape legend: h height, w width, c channels.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from polysense.core.errors import InputError
from polysense.data.limits import check, check_file

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
DRAFT_MARGIN = 2  # decode JPEGs no smaller than this times the target, so that the final resize still sees detail
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # from 5 on height and width change places
READABLE = "JPEG, PNG, WebP, BMP, TIFF or GIF"

_lifted = 0
_lifted_lock = threading.Lock()
_pillow_limit: int | None = None


def describe_source(source: Any) -> str:
    """A short name of a source for messages and output rows: its path, or what kind of object it is."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(name) if isinstance(name, str | Path) and str(name) else f"<{type(source).__name__}>"


def open_source(source: Any, stack: ExitStack) -> Any:
    """Opens a path, bytes or a file object for reading bytes; `stack` closes what was opened here.

    Raises:
        InputError: It is missing, a folder, empty, or may not be read.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.is_dir():
                raise InputError(path, "this is a folder, not a file", "give the files inside it one by one")
            file: Any = stack.enter_context(path.open("rb"))
        except FileNotFoundError as error:
            raise InputError(path, "there is no such file", "check the path") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                path, f"the file cannot be opened ({reason})", "check the path and its permissions"
            ) from error
    elif isinstance(source, bytes | bytearray | memoryview):
        file = io.BytesIO(source)
    else:
        file = source
        if not file.seekable():
            file = io.BytesIO(file.read())
    start = file.tell()
    if not file.read(1):
        raise InputError(describe_source(source), "the file is empty", "download or export it again")
    file.seek(start)
    return file


def read_image(source: Any, *, target: int | None = None) -> Image.Image:
    """Reads one image as upright RGB.

    Args:
        source: A path, bytes, a binary file object, a PIL image, a NumPy array (h, w) or (h, w, 1 | 3 | 4), or a torch
            tensor (h, w) or (1 | 3 | 4, h, w); arrays hold uint8, uint16, bool, or floats from 0 to 1.
        target: The longer side, in pixels, that will be needed. Large JPEGs are then decoded at an eighth, a quarter or
            half of their size, several times faster, but never smaller than twice the target; nothing is enlarged.

    Raises:
        InputError: There is no such file, it is no image, it is cut short, or it is unreasonably large.
    """
    return read_image_sized(source, target=target)[0]


def read_image_sized(source: Any, *, target: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """Like `read_image`; also returns the (height, width) of the upright original, which `target` may have shrunk."""
    name = describe_source(source)
    if isinstance(source, torch.Tensor):
        source = _tensor_to_array(source)
    if isinstance(source, np.ndarray):
        image = _array_to_image(source, name)
        return image, (image.height, image.width)
    if not isinstance(source, str | Path | bytes | bytearray | memoryview | Image.Image) and not hasattr(
        source, "read"
    ):
        fix = "give a path, bytes, a file object, a PIL image, a NumPy array or a tensor"
        raise InputError(name, "an image cannot be read from this type", fix)
    with ExitStack() as stack:
        stack.enter_context(own_pixel_limit())
        check_file(source)
        image = source if isinstance(source, Image.Image) else _open(open_source(source, stack), name)
        if 0 in image.size:
            raise InputError(name, "the image has no pixels", "export it again")
        check_pixels(image, name)
        # A draft would change the caller's own PIL image for good.
        upright, size = _decode(image, None if image is source else target, name)
        rgb = _to_rgb(upright, name)
        return rgb.copy() if rgb is source else rgb, size


def check_pixels(image: Image.Image, source: object) -> None:
    """Refuses an image that was opened, but not decoded, for having more pixels than the limit."""
    check("pixels", image.width * image.height, source, f"{image.width} × {image.height} pixels")


def _open(file: Any, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise InputError(
            name, "this is not an image, or one of an unknown format", f"convert it to {READABLE}"
        ) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet in a broken header
        raise InputError(name, f"the image is damaged ({_reason(error)})", "download or export it again") from error


def _decode(image: Image.Image, target: int | None, name: str) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes all pixels and turns them upright; returns the picture and the upright original's (height, width)."""
    width, height = image.size
    try:
        if target is not None and image.format in ("JPEG", "MPO"):
            share = DRAFT_MARGIN * target / max(width, height)
            image.draft(None, (max(1, round(width * share)), max(1, round(height * share))))
        image.load()
    except Exception as error:  # see _open
        problem = f"the image is cut short or damaged ({_reason(error)})"
        raise InputError(name, problem, "download or export it again") from error
    orientation = _orientation(image)
    if orientation not in UPRIGHT:
        return image, (height, width)
    # ImageOps.exif_transpose would also write the metadata again, and fails where one odd tag cannot be written.
    return image.transpose(UPRIGHT[orientation]), (width, height) if orientation >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """The orientation tag of a loaded image; pixels are worth reading even where the metadata is broken."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises whatever it meets: SyntaxError, struct.error, ...
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey(np.round(np.asarray(image).astype(np.float32) / 257))
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError(name, "some pixels are not numbers (NaN or infinite)", "fill them before reading")
        low, high = values.min(), values.max()
        return _grey(np.round((values - low) / ((high - low) or 1.0) * 255))
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB") if image.mode != "RGB" else image
    except ValueError as error:
        raise InputError(name, f"the colour mode {image.mode} cannot be read", "convert the image to RGB") from error


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8), "L").convert("RGB")


def _tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # unknown to NumPy
        tensor = tensor.float()
    return (tensor.movedim(0, -1) if tensor.ndim == 3 else tensor).numpy()


def _array_to_image(array: np.ndarray, name: str) -> Image.Image:
    """(h, w) or (h, w, 1 | 3 | 4) of uint8, uint16, bool or floats in 0..1 -> RGB."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or array.size == 0:
        fix = "give an array (height, width) or (height, width, 1, 3 or 4), or a tensor (1, 3 or 4, height, width)"
        raise InputError(name, f"an array of shape {array.shape} is not an image", fix)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = np.round(array.astype(np.float32) / 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        array = _float_to_bytes(array, name)
    elif array.dtype != np.uint8:
        raise InputError(name, f"pixels of type {array.dtype} have no known range", "convert them to uint8, 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _float_to_bytes(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise InputError(name, "some pixels are not numbers (NaN or infinite)", "fill them before reading")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        fix = "scale them to 0..1 or give uint8"
        raise InputError(name, f"floating-point pixels run from {low:.3g} to {high:.3g}, not from 0 to 1", fix)
    return np.round(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Lifts Pillow's bomb check, which warns below our limit and raises under it, while our own check stands in.

    Pillow keeps its limit in a module global; it is put back when the last reading thread leaves.
    """
    global _lifted, _pillow_limit
    with _lifted_lock:
        if _lifted == 0:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _lifted += 1
    try:
        yield
    finally:
        with _lifted_lock:
            _lifted -= 1
            if _lifted == 0:
                Image.MAX_IMAGE_PIXELS = _pillow_limit
