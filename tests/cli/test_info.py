import torch

from src.cli.info import count_flops
from tests.fixtures.tiny import tiny_config


def test_the_deployed_backbone_has_the_operations_of_the_trained_one():
    torch.manual_seed(0)
    model = tiny_config(num_classes=4).model.eval()
    trained = count_flops(model, (64, 64))
    deployed = count_flops(model.deploy(), (64, 64))
    assert deployed["backbone"] == trained["backbone"] > 0
