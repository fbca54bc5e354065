"""Where pictures stand in a question.

Owns the marker's meaning. Must not know tokenizers or pixels.
"""

from __future__ import annotations

from algorithms.types import IMAGE_MARKER, Prompt
from tasks.errors import BadPromptError


def texts_between_images(prompt: Prompt) -> list[str]:
    """Cut a question at its pictures.

    Args:
        prompt: its question has one marker per picture, or none; without markers the pictures come first.

    Returns:
        One text more than there are pictures, some of them empty.

    Raises:
        BadPromptError: when markers and pictures disagree in number.
    """
    texts = prompt.question.split(IMAGE_MARKER)
    markers, images = len(texts) - 1, len(prompt.image_paths)
    if markers == 0:
        return [""] * images + texts
    if markers != images:
        raise BadPromptError(f"{markers} {IMAGE_MARKER} markers for {images} images")
    return texts
