"""Pictures from outside, checked and brought to the size that the model reads, upright and cut around the face.

Whatever is wrong with a file becomes an ``InputError`` of one line. Nothing here needs JAX.
"""

from __future__ import annotations

import io
import logging
import os
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data_pipeline.schema import REFERENCES
from lpm_jax.errors import InputError, one_line
from lpm_jax.media import open_source, source_name

log = logging.getLogger(__name__)  # INFO: what was done to odd but valid input

MIN_SIDE = 32  # pixels; a face in anything smaller is unreadable
MAX_PIXELS = 120_000_000
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA")
#: Height and width of the published resolutions: landscape, portrait, square; all of about the same area, and whole
#: numbers of 16-pixel patches.
BUCKETS = {"480p": ((480, 832), (832, 480), (624, 624)), "720p": ((720, 1280), (1280, 720), (960, 960))}

ImageSource = str | os.PathLike | io.IOBase | Image.Image | np.ndarray


def load_image(
    source: ImageSource, size: int | tuple[int, int] = 128, *, name: str = ""
) -> UInt8[np.ndarray, "height width 3"]:
    """Any picture at ``size``, a square's side or (height, width): upright (EXIF), over neutral grey where transparent,
    the largest cut of that shape whose centre lies in the middle across and a third from the top (faces are there), or
    in the middle where that is too near to an edge.

    Raises ``InputError`` for what is no picture, is damaged, has more than 120 million pixels or a side under 32.
    """
    height, width = (size, size) if isinstance(size, int) else size
    name = name or source_name(source, "image")
    image, file = _open(source, name)
    try:
        side = 4 * max(width, height)
        image.draft("RGB", (side, side))  # JPEG only: decode large photographs at a fraction of their size
        return _cut(image, height, width, name)
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{name}: expected a picture, found damaged data ({one_line(error, 80)})") from None
    finally:
        if file is not None:
            file.close()


def bucket(source: ImageSource, resolution: str, *, name: str = "") -> tuple[int, int]:
    """Height and width at ``"480p"`` or ``"720p"`` whose shape is nearest to the picture's, or those of
    ``"WIDTHxHEIGHT"``.

    Raises:
      InputError: ``resolution`` is neither, or ``source`` is no picture.
    """
    if resolution not in BUCKETS:
        width, times, height = resolution.partition("x")
        if not (times and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            raise InputError(
                f"resolution: expected {', '.join(BUCKETS)} or WIDTHxHEIGHT in pixels, found {resolution!r}"
            )
        return int(height), int(width)
    image, file = _open(source, name or source_name(source, "image"))
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation: a quarter turn
    width, height = image.size[::-1] if turned else image.size
    if file is not None:
        file.close()
    return min(BUCKETS[resolution], key=lambda hw: abs(np.log(hw[1] / hw[0]) - np.log(width / height)))


def reference_kind(name: str) -> int:
    """The number of a reference kind such as ``"view/left"`` (``models/conditions.py``).

    Raises:
      InputError: there is none of that name.
    """
    if name not in REFERENCES[1:]:
        raise InputError(f"reference {name!r}: expected one of {', '.join(REFERENCES[1:])}")
    return REFERENCES.index(name) + 1


def read_references(texts: list[str]) -> dict[str, str]:
    """Options such as ``view/left=me-left.png`` as kinds and paths.

    Raises:
      InputError: a kind that there is not, or one given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, _, path = text.partition("=")
        if kind not in REFERENCES[1:] or not path:
            kinds = ", ".join(REFERENCES[1:])
            raise InputError(f"--reference: expected KIND=FILE with KIND one of {kinds}, found {text!r}")
        if kind in found:
            raise InputError(f"--reference: expected each kind once, found {kind} twice")
        found[kind] = path
    return found


def _open(source: ImageSource, name: str) -> tuple[Image.Image, io.IOBase | None]:
    """The picture, not yet decoded, and the file to close, if it was opened here."""
    if isinstance(source, np.ndarray):
        grey_or_colour = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))
        if source.dtype != np.uint8 or not grey_or_colour:
            raise InputError(f"{name}: expected uint8 [height, width, 3], found {source.dtype} {list(source.shape)}")
        _check_size(name, source.shape[1], source.shape[0])
        return Image.fromarray(source), None
    if isinstance(source, Image.Image):
        _check_size(name, *source.size)
        return source, None
    file = open_source(source, name)
    opened = file if file is not source else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, lower bomb limit; ours follows
            image = Image.open(file, formats=IMAGE_FORMATS)
        _check_size(name, *image.size)
        return image, opened
    except InputError as error:
        failure = str(error)
    except UnidentifiedImageError:
        failure = f"{name}: expected a picture (png, jpeg, webp), found another kind of file"
    except Image.DecompressionBombError:
        failure = f"{name}: expected at most {MAX_PIXELS:,} pixels, found more than twice as many"
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        failure = f"{name}: expected a picture, found damaged data ({one_line(error, 80)})"
    if opened is not None:
        opened.close()
    raise InputError(failure)


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name}: no face-sized image: expected at least {MIN_SIDE} pixels a side, found {width}x{height}"
        )
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: expected at most {MAX_PIXELS:,} pixels, found {width}x{height}")


def _cut(image: Image.Image, height: int, width: int, name: str) -> UInt8[np.ndarray, "height width 3"]:
    original = image.size
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit and float greyscale: Pillow would clip them
        x = np.asarray(image, np.float32)
        top = 65535.0 if image.mode.startswith("I") else max(float(x.max()), 1e-6)
        image = Image.fromarray(np.clip(x * (255 / top), 0, 255).astype(np.uint8))
    rgba = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, (128, 128, 128, 255)), rgba).convert("RGB")
    scale = min(image.width / width, image.height / height)
    w, h = min(round(scale * width), image.width), min(round(scale * height), image.height)
    left, top = (image.width - w) // 2, int(np.clip(round(image.height / 3 - h / 2), 0, image.height - h))
    filters = Image.Resampling
    cut = image.crop((left, top, left + w, top + h))
    out = cut.resize((width, height), filters.LANCZOS if scale > 1 else filters.BICUBIC)
    if (w, h) != image.size or image.width > 2000:
        log.info("%s: %dx%d, cut and scaled to %dx%d", name, *original, width, height)
    return np.asarray(out, np.uint8)
