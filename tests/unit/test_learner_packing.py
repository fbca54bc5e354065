import numpy as np
import pytest

from learner.packing import Row, pack_rows
from tests.fakes import make_trajectory

PROMPT = np.arange(10, dtype=np.int32)


def response(*tokens: int, prompt: np.ndarray = PROMPT, **others):
    ids = np.array(tokens, np.int32)
    return make_trajectory(response_tokens=len(ids), prompt_token_ids=prompt, response_token_ids=ids, **others)


def test_a_prompt_holds_its_distinct_responses() -> None:
    # 10 prompt tokens, and each response without its last: 10 + (3 - 1) + (5 - 1).
    samples = [response(1, 2, 3, 4, 5), response(7, 8, 9), response(1, 2, 3, 4, 5)]
    assert pack_rows(samples, [10] * 3, max_row_tokens=100) == [Row(responses=((1,), (0, 2)), num_tokens=16)]


def test_equal_texts_over_other_images_are_other_prompts() -> None:
    samples = [response(1, 2, prompt_id="a"), response(1, 2, prompt_id="b"), response(1, 2, prompt=PROMPT + 1)]
    assert [row.responses for row in pack_rows(samples, [10] * 3, max_row_tokens=100)] == [((0,),), ((1,),), ((2,),)]


def test_a_full_row_repeats_the_prompt() -> None:
    samples = [response(*range(4), index=i, prompt_id="p", prompt=PROMPT) for i in range(1)] + [
        response(i, 1, 2, 3, prompt_id="p") for i in range(20, 23)
    ]
    rows = pack_rows(samples, [10] * 4, max_row_tokens=16)
    assert [row.num_tokens for row in rows] == [16, 16]
    assert sorted(sample for row in rows for samples in row.responses for sample in samples) == [0, 1, 2, 3]


def test_a_response_over_the_bound_has_its_own_row() -> None:
    assert [row.num_tokens for row in pack_rows([response(*range(30)), response(5, 6)], [10] * 2, max_row_tokens=16)] == [11, 39]


def test_an_empty_response_is_refused_by_its_id() -> None:
    with pytest.raises(ValueError, match="p0@0/0 has no response tokens"):
        pack_rows([response()], [10], max_row_tokens=16)
