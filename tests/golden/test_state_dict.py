"""Released D-FINE weights load completely: keys, shapes, types and order are the same."""

import pytest

from tests.fixtures.golden import SIZES, coco_config, read_json


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_equals_that_of_the_official_model(size):
    model = coco_config(size).model
    buffers = {name for name, _ in model.named_buffers()}
    rows = [
        [
            key,
            list(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            "buffer" if key in buffers else "parameter",
        ]
        for key, tensor in model.state_dict().items()
    ]
    assert rows == read_json(f"dfine_{size}.keys.json")
