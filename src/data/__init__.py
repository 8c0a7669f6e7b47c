"""Data sets, transforms, collation and evaluation. Importing this package registers them."""

from . import collate, dataloader, dataset, evaluation, transforms

__all__ = ["collate", "dataloader", "dataset", "evaluation", "transforms"]
