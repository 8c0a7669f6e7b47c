"""Compute the gradients of one training step on the given number of ranks, and write them.

usage: gradients_worker.py CONFIG OUTPUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.parallel import DistributedDataParallel

from src.core import YAMLConfig
from src.nn.backbone.hgnetv2 import freeze_batch_norms
from src.runtime.distributed import (
    gather_objects,
    is_main,
    join_group,
    leave_group,
    mean_over_ranks,
    world_size,
)


def main(config: str, output: str) -> None:
    join_group(torch.device("cpu"))
    cfg = YAMLConfig(config, num_classes=4)
    torch.manual_seed(0)
    model, criterion, loader = (
        cfg.model.train(),
        cfg.criterion.train(),
        cfg.train_dataloader,
    )
    freeze_batch_norms(model)
    for parameter in (
        model.decoder.parameters()
    ):  # zero-initialised heads would hide differences
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    distillation = cfg.distillation
    if distillation is not None:
        distillation.attach()
    loader.set_seed(0)
    loader.set_epoch(0)
    wrapped = DistributedDataParallel(model) if world_size() > 1 else model
    steps = []
    for number, (images, targets) in enumerate(loader):
        steps.append(
            [
                i
                for ids in gather_objects([int(t["image_id"]) for t in targets])
                for i in ids
            ]
        )
        if number == 0:
            losses = criterion(wrapped(images, targets=targets), targets)
            if distillation is not None:
                losses["loss_distill"] = distillation(images)
            loss = sum(losses.values())
            loss.backward()
            loss = mean_over_ranks(loss.detach()).item()
    gradients = {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }
    if distillation is not None:
        distillation.average_gradients()
        for n, p in distillation.projector.named_parameters():
            gradients[f"projector.{n}"] = p.grad
    if is_main():
        torch.save(
            {"images": steps, "loss": loss, "gradients": gradients}, output
        )
    leave_group()


main(*sys.argv[1:])
