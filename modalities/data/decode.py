"""Bytes of any photo -> an upright 8-bit RGB image, or the reason why not.

What the model zoos leave to chance is fixed here: EXIF rotation is applied; transparent pixels show white; 16-bit values are scaled, not
clipped; an animation is its first frame. Colour profiles are ignored, as in the training of the models.
"""

import errno
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from modalities.data.text import printable

Source = BufferedReader | BytesIO
"""An open file, or bytes."""

# PIL imports its plugins at the first image: here, so that no two threads do it at once.
Image.init()

# No EPS and the like: they run a program on what a stranger sent.
_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""About 179 million: above this PIL itself takes a file for a decompression bomb."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

OF_THE_DATA = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EIO),
)

# Once, for the process: `catch_warnings` is not safe in threads. What PIL warns of is either decoded well or ends as a `Bad`.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unreadable(ValueError):
    """The reason why bytes are no image, for a `Bad`."""


def decode(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image, upright, mode RGB. Raises Unreadable for bytes that are no image, cut off, damaged or above `max_pixels`."""
    with _reasons():
        image = _load(source, max_pixels)
        return _upright(_rgb(image), _orientation(image))


def decode_mask(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The mask with its pixel values as stored. Raises Unreadable."""
    with _reasons():
        return _load(source, max_pixels)


def unopened(error: OSError) -> str:
    """The reason for a `Bad`. Raises the error again when it is this machine's (too many open files), not the data's."""
    if error.errno not in OF_THE_DATA:
        raise error
    return f"cannot be read: {error.strerror}"


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except (MemoryError, Unreadable):
        raise
    except UnidentifiedImageError:
        raise Unreadable("is no image in a known format") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"is too large: {str(error).split(',')[0].lower()}") from None
    except Exception as error:  # decoders raise what they like on bytes made to break them
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file, not of what is in it
        words = " ".join(printable(str(error) or type(error).__name__).split())
        raise Unreadable(f"cannot be decoded: {words[:200]}") from error


def _load(source: Source, max_pixels: int) -> Image.Image:
    if not source.read(1):
        raise Unreadable("is an empty file")
    source.seek(0)
    image = Image.open(source, formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable(f"is too large: {width} x {height} pixels, the limit is {max_pixels / 1e6:g} million")
    image.load()
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 bits or of floats in [0, 1], scaled to 0..255."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):
        raise Unreadable(f"holds values from {values.min():g} to {values.max():g}: which of them is white is not known")
    return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 1  # damaged EXIF is no reason to lose the photo


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info = {}  # or the next reader of its EXIF turns it again
    return turned
