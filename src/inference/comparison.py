"""Pictures of what a detector found beside what is there."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from PIL import Image

from ..core.yaml_config import YAMLConfig
from ..detection.drawing import DrawnObjects, draw_pair, side_by_side
from ..detection.fitting import load_strictly
from ..detection.weight_file import read_weights
from ..runtime.files import prepare_output_dir
from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.log import logger
from ..runtime.own_files import picture_names, refuse_foreign, refuse_leaving, write_picture


@torch.inference_mode()
def draw_comparisons(
    cfg: YAMLConfig, device: torch.device, folder: Path, *, count: int, threshold: float
) -> list[Path]:
    """Write one JPEG an image: truth on the left, predictions on the right.

    Args:
        cfg: the configuration; `resume` names the checkpoint, `val_dataloader` the images.
        device: where to compute.
        folder: where the pictures go.
        count: number of images, spread evenly over the data set.
        threshold: least score that is drawn.

    Returns:
        The files.

    Raises:
        CheckpointError: if the checkpoint does not fit the configuration.
        DataError: if images are missing, or lie outside their folder: pictures shall not carry out what does not belong to the data.
    """
    file, dataset = read_weights(cfg.settings.resume), cfg.val_dataloader.dataset
    dataset.check_images_exist()
    if cfg.yaml_cfg.get("num_classes") is None:
        cfg.set("num_classes", file.num_classes or dataset.num_classes, f"counted in {file.path}")
    cfg.without_pretrained()
    model = cfg.model
    load_strictly(model, file)
    model, postprocessor = model.to(device).eval(), cfg.postprocessor
    indices = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist()
    folder, names = prepare_output_dir(folder), [dataset.labels.file_name(index) for index in indices]
    written = [folder / name for name in picture_names(names)]
    refuse_leaving(folder, written)
    refuse_foreign(written, "choose another --output")
    for index, path in zip(indices, written):
        raw = dataset.raw_sample(index)
        image, target = dataset.transforms(copy.copy(raw)).render()
        outputs = model(image[None].to(device))
        refuse_non_finite_outputs(outputs, [target["image_path"]])
        found = postprocessor(outputs, target["orig_size"][None].to(device))[0]
        sure = found["scores"] >= threshold
        pair = draw_pair(
            raw.image,
            DrawnObjects.of_labels(raw.boxes, raw.fields["labels"], dataset.label_names),
            DrawnObjects(
                found["boxes"][sure].cpu(),
                found["labels"][sure].cpu(),
                dataset.detection_names,
                found["scores"][sure].cpu(),
            ),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, Image.fromarray(side_by_side(pair).permute(1, 2, 0).numpy()))
    logger.info(
        "%d pictures in %s: truth on the left, predictions with a score from %.2f on the right",
        len(written),
        folder,
        threshold,
    )
    return written
