"""What logits predict, also where they are no numbers."""

import pytest
import torch

from fastarat.models.predictions import are_right, are_undefined, margins, predictions

NAN, INF = torch.nan, torch.inf
ROWS = [
    # logits, what they predict, the margin of class 0
    ([2.0, 1.0, 0.0], 0, 1.0),
    ([1.0, 2.0, 0.0], 1, -1.0),
    ([1.0, 1.0, 0.0], 0, 0.0),  # the first of equal ones, as argmax has it
    ([0.0, 1.0, 1.0], 1, -1.0),
    ([NAN, 1.0, 0.0], -1, NAN),
    ([5.0, 1.0, NAN], -1, NAN),
    ([NAN, NAN, NAN], -1, NAN),
    ([INF, 1.0, 0.0], 0, INF),
    ([1.0, INF, 0.0], 1, -INF),
    ([INF, INF, 0.0], -1, NAN),
    ([0.0, INF, INF], -1, -INF),
    ([0.0, -INF, -INF], 0, INF),
    ([-INF, -INF, -INF], -1, NAN),
    ([INF, NAN, 0.0], -1, NAN),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("row", "predicted", "margin"), ROWS)
def test_a_prediction_is_the_largest_logit_and_none_where_there_is_no_largest(row, predicted, margin, dtype):
    logits = torch.tensor([row, [3.0, 2.0, 1.0]], dtype=dtype)
    assert predictions(logits).tolist() == [predicted, 0]
    assert are_undefined(logits).tolist() == [predicted == -1, False]
    for label in range(3):
        assert are_right(logits, torch.tensor([label, 0])).tolist() == [predicted == label, True]
    found = margins(logits, torch.tensor([0, 0]))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, torch.tensor([margin, 1.0]).to(found), equal_nan=True)
