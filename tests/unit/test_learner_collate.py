import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from algorithms.types import Segment, VersionSpan
from learner.collate import KINDS, PADDING, LossTerms
from learner.images import ImageCache
from learner.packing import Row, pack_rows
from tasks.errors import BadPromptError
from tests.tiny_learner import make_collator, make_trajectories, noise_image, without_masks


@pytest.fixture(scope="module")
def collator(tiny_model: Path):
    return make_collator(tiny_model)


@pytest.fixture(scope="module")
def ids(tiny_model: Path):
    return AutoConfig.from_pretrained(tiny_model)


def rows_of(collator, trajectories):
    return pack_rows(trajectories, [collator.prompt_length(t) for t in trajectories], max_row_tokens=4096)


def segments(y1: int, trigger: int, y2: int) -> tuple[Segment, ...]:
    """y1, the trigger and y2, by their ends."""
    ends = (0, y1, trigger, y2)
    return tuple(Segment(kind=kind, start=start, end=end) for kind, start, end in zip(KINDS, ends, ends[1:], strict=False))


def test_a_text_row_by_hand(tiny_model: Path, collator) -> None:
    first, second = make_trajectories(tiny_model, (), number=0, samples=2)
    first = dataclasses.replace(
        first, prompt_token_ids=np.array([5, 6], np.int32), response_token_ids=np.array([7, 8], np.int32),
        behavior_logprobs=np.array([-1, -2], np.float32), loss_mask=np.array([True, True]), segments=segments(2, 2, 2),
        version_spans=(VersionSpan(start=0, end=2, version=3),),
    )  # fmt: skip
    second = dataclasses.replace(
        first, response_token_ids=np.array([9, 10, 2], np.int32), behavior_logprobs=np.array([-3, -4, -5], np.float32),
        loss_mask=np.array([True, False, True]), segments=segments(1, 2, 3),
        version_spans=(VersionSpan(start=0, end=2, version=3), VersionSpan(start=2, end=3, version=4)),
    )  # fmt: skip
    rows = [Row(responses=((0,), (1,)), num_tokens=5)]
    batch = collator.collate([first, second], rows, LossTerms(coefficients=[0.5, -0.5], weights=[0.1, 0.2], nll_weights=[0, 3]))
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 10]]
    assert batch.segment_ids.tolist() == [[0, 0, 1, 2, 2]]
    assert batch.response_offsets.tolist() == [[0, 0, 0, 0, 1]]
    # 7 and 9 are predicted by the prompt's last token; 10 was not sampled and is left out.
    assert batch.labels.tolist() == [7, 8, 9, 2]
    assert batch.logit_positions.tolist() == [1, 2, 1, 4]
    assert batch.samples.tolist() == [0, 0, 1, 1]
    assert batch.behavior_logprobs.tolist() == [-1, -2, -3, -5]
    assert batch.versions.tolist() == [3, 3, 3, 4]
    assert batch.coefficients.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert batch.weights.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert batch.nll_weights.tolist() == [0, 0, 3, 3]
    assert batch.segment_kinds.tolist() == [KINDS["y1"], KINDS["y1"], KINDS["y1"], KINDS["y2"]]
    assert batch.pixel_values is None
    scored = collator.collate([first, second], rows, masked=True)
    assert scored.labels.tolist() == [7, 8, 9, 10, 2]
    assert scored.segment_kinds.tolist()[-2:] == [KINDS["trigger"], KINDS["y2"]]


def test_every_sample_of_a_repeated_draw_has_its_tokens(tiny_model: Path, collator) -> None:
    (trajectory,) = without_masks(make_trajectories(tiny_model, (), number=0, samples=1))
    trajectories = [trajectory, trajectory]
    batch = collator.collate(trajectories, rows_of(collator, trajectories), LossTerms(coefficients=[1, 1], weights=[1, 1]))
    count = trajectory.num_response_tokens
    assert batch.num_rows == 1
    assert batch.num_padded_tokens == len(trajectory.prompt_token_ids) + count - 1
    assert batch.samples.tolist() == [0] * count + [1] * count
    assert torch.equal(batch.logit_positions[:count], batch.logit_positions[count:])


def test_a_shared_image_is_encoded_once(tiny_model: Path, collator, ids, tmp_path: Path) -> None:
    small, large = noise_image(tmp_path, 1), noise_image(tmp_path, 2, side=112)
    trajectories = [
        *make_trajectories(tiny_model, (small,), number=1),
        *make_trajectories(tiny_model, (large, small), number=2),
        *make_trajectories(tiny_model, (), number=3),
    ]
    batch = collator.collate(trajectories, rows_of(collator, trajectories))
    assert batch.image_grid_thw.tolist() == [[1, 4, 4], [1, 8, 8]]
    assert len(batch.pixel_values) == 16 + 64
    assert batch.image_index.tolist() == [0, 1, 0]
    # 4 tokens of the small image, then the 16 of the large one: rows 0..3 and 4..19 of the vision tower's output.
    assert batch.image_feature_rows.tolist() == [*range(4), *range(4, 20), *range(4)]
    assert (batch.input_ids.flatten()[batch.image_token_positions] == ids.image_token_id).all()
    assert (batch.input_ids == ids.image_token_id).sum() == 24


def test_padding_is_on_the_right(tiny_model: Path, collator) -> None:
    trajectories = [*make_trajectories(tiny_model, (), number=1), *make_trajectories(tiny_model, (), number=7, samples=6)]
    rows = rows_of(collator, trajectories)
    batch = collator.collate(trajectories, rows)
    assert [(row >= 0).sum().item() for row in batch.segment_ids] == [row.num_tokens for row in rows]
    assert all((row[: r.num_tokens] >= 0).all() for row, r in zip(batch.segment_ids, rows, strict=True))
    assert (batch.segment_ids == PADDING).any()


def test_an_image_token_in_a_response_is_text(tiny_model: Path, collator, ids) -> None:
    (trajectory,) = without_masks(make_trajectories(tiny_model, (), number=1, samples=1))
    trajectory.response_token_ids[0] = ids.image_token_id
    assert len(collator.collate([trajectory], rows_of(collator, [trajectory])).image_token_positions) == 0


def test_several_ranks_always_run_the_vision_tower(tiny_model: Path, ids, tmp_path: Path) -> None:
    collator = make_collator(tiny_model, always_run_vision=True)
    text = make_trajectories(tiny_model, (), number=1)
    batch = collator.collate(text, rows_of(collator, text))
    pad = ids.image_token_id
    dummy = [ids.vision_start_token_id, pad, pad, pad, pad, ids.vision_end_token_id]
    assert batch.input_ids[-1, :6].tolist() == dummy
    assert batch.image_grid_thw.tolist() == [[1, 4, 4]]
    assert not batch.pixel_values.any()
    assert batch.logit_positions.max() < batch.num_padded_tokens - batch.input_ids.shape[1], "nothing is predicted in the dummy row"
    pictured = make_trajectories(tiny_model, (noise_image(tmp_path, 1),), number=2)
    assert collator.collate(pictured, rows_of(collator, pictured)).num_rows == 1


def test_no_rows_are_a_microbatch_without_predictions(collator) -> None:
    batch = collator.collate([], [], LossTerms(coefficients=[], weights=[]))
    assert batch.input_ids.shape == (1, 6)
    assert len(batch.labels) == len(batch.weights) == len(batch.logit_positions) == 0
    assert len(batch.image_token_positions) == 4


def test_pads_and_images_must_match(tiny_model: Path, collator, tmp_path: Path) -> None:
    (trajectory,) = make_trajectories(tiny_model, (noise_image(tmp_path, 1),), number=2, samples=1)
    with pytest.raises(ValueError, match=r"p2@0/0 has 1 image pads in its prompt for 0 images"):
        collator.prompt_length(dataclasses.replace(trajectory, images=()))


def test_a_changed_image_file_is_named(tiny_model: Path, collator, tmp_path: Path) -> None:
    ref = noise_image(tmp_path, 1)
    with pytest.raises(BadPromptError, match="was changed"):
        collator.prompt_length(make_trajectories(tiny_model, (dataclasses.replace(ref, sha256="0" * 64),), number=2, samples=1)[0])


def test_the_image_cache_drops_the_least_recently_used(tiny_model: Path, tmp_path: Path) -> None:
    class Counting:
        """The model's own processor, which also counts."""

        def __init__(self, processor):
            self.processor, self.merge_size, self.calls = processor, processor.merge_size, 0

        def __call__(self, **arguments):
            self.calls += 1
            return self.processor(**arguments)

    processor = Counting(make_collator(tiny_model)._images._processor)
    refs = [noise_image(tmp_path, number) for number in range(3)]
    cache = ImageCache(processor, capacity_bytes=2 * 16 * 1176 * 4)  # two images of 16 patches
    for number in (0, 1, 0, 2, 0):  # 2 pushes 1 out, not 0
        cache.get(refs[number])
    assert processor.calls == 3
    cache.get(refs[1])
    assert processor.calls == 4
