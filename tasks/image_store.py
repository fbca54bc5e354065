"""From the pictures that rows bring, as paths or as bytes, to paths that every node can read.

Owns the folder in which pictures that came as bytes are kept, each once, named by their content. Must not know pixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DATA_URL = "data:image/"
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class ImageStore:
    """Resolves the pictures of one data set.

    Pictures travel through the system by reference, so bytes are written out: into ``cache/ab/abcd....png``, by the SHA-256 of their
    content. A picture that is there isn't written again, several processes may write at once, and memory holds one picture at a time.
    """

    def __init__(self, root: str | os.PathLike[str], cache: str | os.PathLike[str]) -> None:
        """Keep the settings; nothing is written yet.

        Args:
            root: relative paths start here and may not leave it.
            cache: folder for pictures that come as bytes, on a file system that every node sees under this path.
        """
        self._root = os.path.abspath(root)
        self._cache = Path(os.path.abspath(cache))
        self._found: dict[str, bool] = {}

    def resolve(self, image: Any) -> str:
        """Find or write a picture.

        Args:
            image: a relative path, bytes, a base64 "data:image/..." address, or a mapping with "bytes" or "path".

        Returns:
            An absolute path.

        Raises:
            ValueError: when the path leaves the folder or doesn't exist, or there are no bytes.
        """
        if isinstance(image, Mapping):
            image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
        if isinstance(image, str) and image.startswith(_DATA_URL):
            image = _decoded(image)
        if isinstance(image, bytes):
            return self._written(image)
        if not isinstance(image, str) or not image:
            raise ValueError(f"an image is neither a path nor bytes but {type(image).__name__}")
        return self._on_disk(image)

    def _on_disk(self, relative: str) -> str:
        path = os.path.normpath(os.path.join(self._root, relative))
        if os.path.isabs(relative) or not path.startswith(self._root.rstrip(os.sep) + os.sep):
            raise ValueError(f"image path leaves the data folder: {relative!r}")
        if path not in self._found:
            self._found[path] = os.path.isfile(path)
        if not self._found[path]:
            raise ValueError(f"image file is missing: {relative!r}")
        return path

    def _written(self, content: bytes) -> str:
        if not content:
            raise ValueError("an image of no bytes")
        name = hashlib.sha256(content).hexdigest()
        suffix = next((suffix for magic, suffix in _SUFFIXES.items() if content.startswith(magic)), ".img")
        path = self._cache / name[:2] / f"{name}{suffix}"
        if not (path.is_file() and path.stat().st_size == len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                os.chmod(scratch, 0o644)
                os.replace(scratch, path)
            except BaseException:
                os.unlink(scratch)
                raise
        return str(path)


def _decoded(address: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("an image address that isn't base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"an image address with damaged base64: {error}") from error
