import contextlib
import hashlib
import random
import struct
import zlib

import pytest
from PIL import Image
from transformers import Qwen2VLImageProcessor

from algorithms.types import ImageRef
from tasks.errors import BadPromptError
from tasks.images import image_token_count, load_image, load_image_ref


def huge_png(width: int, height: int) -> bytes:
    """A file of a few bytes that claims to hold width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_load_image_names_a_picture_by_its_bytes(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (6, 4), 7).save(path)
    loaded = load_image(path)
    assert loaded.ref == ImageRef(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert loaded.image.mode == "RGB"
    assert loaded.image.getpixel((0, 0)) == (7, 7, 7)
    assert loaded.size == (4, 6)
    assert load_image_ref(loaded.ref).image.tobytes() == loaded.image.tobytes()


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    ref = load_image(path).ref
    Image.new("RGB", (4, 4), "red").save(path)
    with pytest.raises(BadPromptError, match="image file was changed"):
        load_image_ref(ref)


def test_transparent_parts_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "can't be decoded"),
        (b"not a picture", "can't be decoded"),
        (huge_png(30000, 30000), r"image has over \d+ pixels: .*900000000"),
        (huge_png(9000, 9000), "image of 9000x9000 pixels is over"),
        (huge_png(100, 100), "can't be decoded"),
    ],
)
def test_damaged_and_oversized_pictures_are_bad_prompts(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadPromptError, match=reason):
        load_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_any_damage_gives_a_picture_or_a_bad_prompt(tmp_path, kind):
    rng = random.Random(kind)
    path = tmp_path / "a.img"
    Image.effect_noise((40, 40), 50).convert("RGB").save(path, format=kind)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole[: rng.randint(1, len(whole))])
        for _ in range(rng.randint(0, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(BadPromptError):
            assert load_image(path).image.mode == "RGB"


def test_a_missing_file_is_a_bad_prompt(tmp_path):
    with pytest.raises(BadPromptError, match=r"can't be read: .*none\.png"):
        load_image(tmp_path / "none.png")
    with pytest.raises(BadPromptError, match="can't be read"):
        load_image(tmp_path)


@pytest.mark.parametrize(("min_pixels", "max_pixels"), [(56 * 56, 112 * 112), (256 * 28 * 28, 1280 * 28 * 28)])
def test_token_count_is_that_of_the_image_processor(min_pixels, max_pixels):
    processor = Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels)
    rng = random.Random(0)
    sizes = [(64, 64), (56, 56), (8, 8), (13, 14), (42, 70), (1, 200), (1000, 5), (28, 1400)]
    sizes += [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(60)]
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            continue
        grid = processor(images=Image.new("RGB", (width, height)), return_tensors="pt")["image_grid_thw"][0]
        count = image_token_count(height, width, min_pixels=min_pixels, max_pixels=max_pixels)
        assert count == int(grid.prod()) // 4, (height, width)


def test_extreme_shapes_are_bad_prompts():
    with pytest.raises(BadPromptError, match="201x1 pixels"):
        image_token_count(201, 1, min_pixels=56 * 56, max_pixels=112 * 112)
    with pytest.raises(BadPromptError, match="0x5 pixels"):
        image_token_count(0, 5, min_pixels=56 * 56, max_pixels=112 * 112)
