"""Pictures by reference: reading, naming by content, and how many tokens one takes.

Owns what makes a picture usable. Must not know prompts, tokenizers or engines.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from algorithms.types import ImageRef
from tasks.errors import BadPromptError

MAX_IMAGE_PIXELS = 64 * 1024 * 1024  # decoded, 192 MiB; larger ones are decompression bombs or mistakes
MAX_FILE_BYTES = 256 * 1024 * 1024
_MAX_ASPECT_RATIO = 200  # the Qwen image processors refuse more


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedImage:
    """A picture with its reference."""

    ref: ImageRef
    image: Image.Image  # RGB, decoded

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, the order that token counts take."""
        return self.image.height, self.image.width


def load_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Read a picture from disk.

    Args:
        path: of the file.

    Returns:
        The picture, decoded, and its reference.

    Raises:
        BadPromptError: when the file is missing, isn't a picture, is damaged or too large.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(name) > MAX_FILE_BYTES:
            raise BadPromptError(f"image file over {MAX_FILE_BYTES} bytes: {name}")
        with open(name, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, BadPromptError):
            raise
        raise BadPromptError(f"image file can't be read: {name}: {error}") from error
    return LoadedImage(ref=ImageRef(path=name, sha256=hashlib.sha256(data).hexdigest()), image=_decode(data, name))


def load_image_ref(ref: ImageRef) -> LoadedImage:
    """Read the picture that a reference names, and check that it still is that picture.

    Args:
        ref: of load_image, maybe made on another node.

    Returns:
        The picture, decoded.

    Raises:
        BadPromptError: as load_image, and when the file's content was changed.
    """
    loaded = load_image(ref.path)
    if loaded.ref.sha256 != ref.sha256:
        raise BadPromptError(f"image file was changed: {ref.path} has sha256 {loaded.ref.sha256}, expected {ref.sha256}")
    return loaded


def image_token_count(height: int, width: int, *, min_pixels: int, max_pixels: int, patch_size: int = 14, merge_size: int = 2) -> int:
    """Count the tokens that a picture takes after Qwen's "smart resize" (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Args:
        height: pixels.
        width: pixels.
        min_pixels: lower bound of the resized area, in pixels.
        max_pixels: upper bound of the resized area, in pixels.
        patch_size: pixels of a patch's side.
        merge_size: patches of a token's side.

    Returns:
        The number of image tokens.

    Raises:
        BadPromptError: when a side is 0 or the picture is more than 200 times as long as wide.
    """
    if min(height, width) < 1 or max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise BadPromptError(f"image of {height}x{width} pixels: sides must differ by a factor of {_MAX_ASPECT_RATIO} at most")
    unit = patch_size * merge_size
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
    elif rows * columns * unit**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
    return rows * columns


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise BadPromptError(f"image of {image.width}x{image.height} pixels is over {MAX_IMAGE_PIXELS}: {name}")
            return _on_white(ImageOps.exif_transpose(image))
    except BadPromptError:
        raise
    except UnidentifiedImageError as error:
        raise BadPromptError(f"image can't be decoded: {name}: in no known format") from error
    except Image.DecompressionBombError as error:
        raise BadPromptError(f"image has over {MAX_IMAGE_PIXELS} pixels: {name}: {error}") from error
    except Exception as error:  # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, zlib.error
        raise BadPromptError(f"image can't be decoded: {name}: {type(error).__name__}: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; transparent parts become white, as on paper, because black lines on a dropped alpha channel would vanish."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")
