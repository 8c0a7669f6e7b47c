"""Run a checkpoint or an exported model on images. No separate configuration file is needed.

from src.inference import Detector

detector = Detector.from_checkpoint("best.pth")
found = detector.predict("image.jpg")
for box, score, name in zip(found.boxes, found.scores, found.names):
    print(name, score, box)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import CheckpointError, ConfigError, NumericsError
from ..core.yaml_config import YAMLConfig
from ..data.dataset.decoding import ImageError, ImageFlag, image_from_pil, inspect_image
from ..detection.fitting import load_strictly
from ..detection.model_config import model_config
from ..detection.weight_file import WeightFile, read_weights
from ..runtime.distributed import pick_device
from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.log import logger
from .engines import Engine, TorchEngine, batch_image_names
from .exported_engines import ExportedEngine, OnnxEngine, OpenVinoEngine, TensorRtEngine
from .metadata import Metadata, metadata_for
from .prediction import Prediction
from .prediction_settings import DEFAULT_SETTINGS, PredictionSettings
from .preprocessing import Preprocessing
from .tiling import Tiling, predict_tiled


class LabelledFile(NamedTuple):
    """An image file with the image size that its labels refer to.

    A rotation in the file's EXIF data is applied only if the image then has this size.
    """

    path: Path
    size: tuple[int, int]
    """(width, height)."""


Readable = str | Path | Image.Image | np.ndarray | Tensor | LabelledFile
"""An image: a file; a PIL image; an array `[H, W, 3]` (RGB) or `[H, W]` (grey), uint8; or a tensor `[3, H,
W]`, uint8, RGB."""

DEFAULT_THRESHOLD = 0.4
"""Minimum score if the checkpoint contains none, as in D-FINE's tools."""

READING_THREADS = 4
"""Threads that read images while the model computes."""


class ImagePrediction(NamedTuple):
    """An image and its prediction."""

    image: Tensor
    """`[3, H, W]` uint8, RGB."""
    prediction: Prediction


class Detector:
    """Detects objects in images with any engine."""

    def __init__(
        self,
        engine: Engine,
        preprocessing: Preprocessing,
        classes: Sequence[dict[str, Any]],
        threshold: float | None = None,
        meta: dict[str, Any] | None = None,
        cfg: YAMLConfig | None = None,
    ) -> None:
        """Combine the parts of a detector. `from_checkpoint` and its siblings create detectors from files.

        Args:
            engine: engine that computes detections from preprocessed images.
            preprocessing: preprocessing of images.
            classes: `{"id": category id, "name": name}` for each label in order.
            threshold: default minimum score for `predict`; None uses 0.4.
            meta: metadata of the file.
            cfg: configuration of the training, if it is known.
        """
        self.engine = engine
        self.preprocessing = preprocessing
        self.classes = list(classes)
        self.meta = meta or {}
        self.cfg = cfg
        self.threshold = (
            DEFAULT_THRESHOLD if threshold is None else _checked_threshold(threshold)
        )
        self._ids = np.array([entry["id"] for entry in self.classes], np.int64)
        self._names = np.array([entry["name"] for entry in self.classes], object)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        config: str | Path | None = None,
        input_size: Sequence[int] | None = None,
        use_amp: bool = False,
    ) -> Detector:
        """Load `best.pth`, `last.pth` or a file of D-FINE.

        Args:
            path: path of the checkpoint; its EMA weights are used if it has any.
            device: cpu, cuda or cuda:N; None uses CUDA if available.
            config: a configuration file, for checkpoints without a configuration.
            input_size: (height, width) in pixels; None uses the size of the training.
            use_amp: compute in bf16, or in fp16 if the device has no bf16; CUDA only.

        Raises:
            CheckpointError: if the file is damaged, does not fit its configuration, or has no configuration
                and none is given.
            ConfigError: if the device does not exist or the model cannot use the input size.
        """
        file = read_weights(path)
        picked = pick_device(device)
        cfg = model_config(file, config)
        return cls.from_weights(
            file, cfg, picked, input_size=input_size, use_amp=use_amp
        )

    @classmethod
    def from_weights(
        cls,
        file: WeightFile,
        cfg: YAMLConfig,
        device: torch.device,
        *,
        input_size: Sequence[int] | None = None,
        use_amp: bool = False,
    ) -> Detector:
        """Build the model of a configuration and load weights that were read from a file.

        Args:
            file: the weights.
            cfg: configuration of the model, which is adjusted to the weights (`WeightFile.prepare`).
            device: device of the model.
            input_size: as for `from_checkpoint`.
            use_amp: as for `from_checkpoint`.

        Raises:
            CheckpointError: if the weights do not fit the configuration.
            ConfigError: if the model cannot use the input size.
        """
        file.prepare(cfg)
        preprocessing = Preprocessing.from_config(cfg)
        if input_size is not None and tuple(input_size) != preprocessing.input_size:
            logger.warning(
                "input size %d x %d instead of %d x %d (height x width), which the model was trained for: "
                "accuracy may differ",
                *input_size,
                *preprocessing.input_size,
            )
            preprocessing = preprocessing.resized(input_size)
        cfg.set("eval_spatial_size", list(preprocessing.input_size), "the input size")
        model = cfg.model
        load_strictly(model, file)
        engine = TorchEngine(
            model.deploy(), cfg.postprocessor.deploy(), device, use_amp=use_amp
        )
        notes = {key: value for key, value in file.meta.items() if key != "config"}
        notes["file"] = str(file.path)
        return cls(
            engine, preprocessing, file.named_classes, file.threshold, notes, cfg
        )

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        threads: int | None = None,
    ) -> Detector:
        """Load a model exported by `tools/deployment/export_onnx.py` into ONNX Runtime.

        Arguments and errors are those of `OnnxEngine`.

        Raises:
            CheckpointError: if neither the file nor NAME.json beside it has the classes and preprocessing.
        """
        return cls._from_export(OnnxEngine(path, device, threads=threads), path)

    @classmethod
    def from_openvino(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        threads: int | None = None,
    ) -> Detector:
        """Load an exported `.onnx` file, or an `.xml` file converted from it, into OpenVINO.

        Arguments and errors are those of `OpenVinoEngine` and `from_onnx`.
        """
        return cls._from_export(OpenVinoEngine(path, device, threads=threads), path)

    @classmethod
    def from_tensorrt(cls, path: str | Path, *, device: str | None = None) -> Detector:
        """Load a TensorRT engine built from an exported model, with NAME.json beside it.

        Arguments and errors are those of `TensorRtEngine` and `from_onnx`.
        """
        return cls._from_export(TensorRtEngine(path, device), path)

    @classmethod
    def _from_export(cls, engine: ExportedEngine, path: str | Path) -> Detector:
        metadata = metadata_for(Path(path), engine.metadata)
        return cls(
            engine,
            _exported_preprocessing(metadata, engine, path),
            [dict(entry) for entry in metadata.classes],
            metadata.threshold,
            {
                "file": str(path),
                "licences": metadata.licences,
                "commit": metadata.commit,
                "checkpoint": metadata.checkpoint,
            },
        )

    def predict(
        self,
        images: Readable | Iterable[Readable],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        nms: float | None = None,
        tiling: Tiling | None = None,
    ) -> Prediction | list[Prediction]:
        """Detect objects.

        Args:
            images: one image, or several as an iterable or a 4-dimensional array or tensor.
            threshold: as in `PredictionSettings`.
            batch_size: as in `PredictionSettings`.
            nms: as in `PredictionSettings`.
            tiling: as in `PredictionSettings`.

        Returns:
            The prediction for a single image, or a list with the prediction for each image.

        Raises:
            DataError: if an image cannot be read.
            ConfigError: if an object is not an image.
            NumericsError: if the model gives NaN or infinity.
        """
        settings = PredictionSettings(threshold, batch_size, nms, tiling)
        several, is_single = _as_several(images)
        found = [predicted.prediction for predicted in self.stream(several, settings)]
        return found[0] if is_single else found

    def stream(
        self,
        images: Iterable[Readable],
        settings: PredictionSettings = DEFAULT_SETTINGS,
        *,
        unreadable: list[ImageError] | None = None,
    ) -> Iterator[ImagePrediction]:
        """Detect objects in a stream of images, keeping only a few images in memory.

        Args:
            images: any number of images.
            settings: settings of the prediction.
            unreadable: list to which the errors of unreadable images are appended; these images are skipped.
                None raises the first error.

        Raises:
            ConfigError: immediately, if a setting is out of range.
        """
        size = self.engine.batch_size or settings.batch_size
        if size < 1:
            raise ConfigError(f"batch_size is {size}, expected at least 1")
        for name, value in (("threshold", settings.threshold), ("nms", settings.nms)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value:g}, expected 0 to 1")
        predict = partial(
            self._predict_batch, threshold=settings.threshold, nms=settings.nms
        )
        return self._stream(images, predict, size, settings.tiling, unreadable)

    def _stream(
        self,
        images: Iterable[Readable],
        predict: Callable[[Sequence[Tensor]], list[Prediction]],
        size: int,
        tiling: Tiling | None,
        unreadable: list[ImageError] | None,
    ) -> Iterator[ImagePrediction]:
        reading = _read_ahead(images, unreadable, ahead=2 if tiling else 2 * size)
        while True:
            chunk = list(islice(reading, 1 if tiling else size))
            if not chunk:
                return
            batch = [image for image, _ in chunk]
            try:
                found = (
                    [predict_tiled(batch[0], tiling, predict, size)]
                    if tiling
                    else predict(batch)
                )
            except NumericsError as error:
                files = [str(source) for _, source in chunk if source is not None]
                more = f" and {len(files) - 8} more" if len(files) > 8 else ""
                batch_files = (
                    f"; files of the batch: {', '.join(files[:8])}{more}"
                    if files
                    else ""
                )
                raise NumericsError(f"{error}{batch_files}") from None
            for (image, source), prediction in zip(chunk, found):
                yield ImagePrediction(image, replace(prediction, source=source))

    def _predict_batch(
        self,
        images: Sequence[Tensor],
        threshold: float | None,
        nms: float | None,
    ) -> list[Prediction]:
        labels, boxes, scores = (
            part.float().numpy() if part.is_floating_point() else part.numpy()
            for part in self.engine(*self.preprocessing(images))
        )
        minimum = self.threshold if threshold is None else threshold
        self._refuse_unknown_labels(labels)
        result = []
        refuse_non_finite_outputs(
            {"scores": scores, "boxes": boxes}, batch_image_names(len(images))
        )
        for image, label, box, score in zip(images, labels, boxes, scores):
            kept = score >= minimum
            label = label[kept].astype(np.int64)
            prediction = Prediction(
                box[kept],
                score[kept],
                label,
                self._ids[label],
                self._names[label].tolist(),
                (image.shape[2], image.shape[1]),
            )
            result.append(
                prediction
                if nms is None
                else prediction.select(_rows_after_nms(prediction, nms))
            )
        return result

    def _refuse_unknown_labels(self, labels: np.ndarray) -> None:
        """Check that every label of a batch has a class."""
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise CheckpointError(
                f"{self.meta.get('file', 'the model')} gives labels from {labels.min()} to {labels.max()}, "
                f"but its metadata names {len(self.classes)} classes"
            )


def _exported_preprocessing(
    metadata: Metadata, engine: ExportedEngine, path: str | Path
) -> Preprocessing:
    """Return the preprocessing of an exported model, after comparing its size with that of the graph.

    Raises:
        CheckpointError: if a transform cannot be built, or the sizes differ.
    """
    try:
        preprocessing = Preprocessing(metadata.preprocessing)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: metadata.preprocessing cannot be used: {error}; export the model again"
        ) from None
    sizes = {
        "metadata.input_size": tuple(metadata.input_size),
        "the graph": engine.input_size,
    }
    for name, size in sizes.items():
        if size is not None and size != preprocessing.input_size:
            raise CheckpointError(
                f"{path}: metadata.preprocessing resizes images to {preprocessing.input_size} (height, "
                f"width), but {name} has {size}; export the model again"
            )
    return preprocessing


def _as_several(
    images: Readable | Iterable[Readable],
) -> tuple[Iterable[Readable], bool]:
    """Return an iterable of images, and whether a single image was given."""
    if isinstance(images, (str, Path, Image.Image, LabelledFile)):
        return [images], True
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim < 4:
        return [images], True
    # iterating over an array or tensor gives its images
    return cast("Iterable[Readable]", images), False


def _checked_threshold(value: Any) -> float:
    """Return the threshold of a file after checking it.

    Raises:
        CheckpointError: if it is not a number from 0 to 1.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= 1
    ):
        raise CheckpointError(
            f"the threshold in the file is {value!r}, expected a number from 0 to 1"
        )
    return value


@cache
def _warn_of_several_frames(folder: Path) -> None:
    """Warn, once for each folder, that only the first frame of an image file is used."""
    logger.warning(
        "images in %s have several frames or pages, of which only the first is used",
        folder,
    )


def read_image(image: Readable) -> tuple[Tensor, str | None]:
    """Return an image as `[3, H, W]` uint8, RGB, and its file name if it came from a file.

    Raises:
        ImageError: if a file cannot be read.
        ConfigError: if it is not an image, or an array with a wrong shape or type.
    """
    if isinstance(image, LabelledFile | str | Path):
        path, size = image if isinstance(image, LabelledFile) else (Path(image), None)
        pixels, flags = inspect_image(path, size)
        if ImageFlag.SEVERAL_FRAMES in flags:
            _warn_of_several_frames(path.parent)
        return pixels, str(path) if isinstance(image, LabelledFile) else str(image)
    if isinstance(image, Image.Image):
        return image_from_pil(image), getattr(image, "filename", None) or None
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ConfigError(
            f"a {type(image).__name__} is not an image; pass a file, a PIL image, an array [H, W, 3] or a "
            "tensor "
            "[3, H, W]"
        )
    pixels = (
        image
        if isinstance(image, Tensor)
        else torch.from_numpy(np.require(image, requirements=["C", "W"]))
    )
    if isinstance(image, np.ndarray):
        pixels = pixels[..., None].expand(-1, -1, 3) if pixels.ndim == 2 else pixels
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    if (
        pixels.dtype != torch.uint8
        or pixels.ndim != 3
        or pixels.shape[0] != 3
        or 0 in pixels.shape
    ):
        wanted = (
            "[3, H, W] uint8"
            if isinstance(image, Tensor)
            else "[H, W, 3] (RGB) or [H, W] (grey), uint8"
        )
        raise ConfigError(
            f"an image of shape {list(image.shape)} and type {image.dtype} was given, expected {wanted}"
        )
    return pixels.cpu(), None


def _read_ahead(
    images: Iterable[Readable],
    unreadable: list[ImageError] | None,
    *,
    ahead: int,
) -> Iterator[tuple[Tensor, str | None]]:
    """Read images in threads, up to `ahead` at a time, and yield them in order."""
    source = iter(images)
    waiting: deque[Future[tuple[Tensor, str | None]]] = deque()
    with ThreadPoolExecutor(READING_THREADS) as readers:
        while True:
            waiting.extend(
                readers.submit(read_image, image)
                for image in islice(source, ahead - len(waiting))
            )
            if not waiting:
                return
            try:
                yield waiting.popleft().result()
            except ImageError as error:
                if unreadable is None:
                    raise
                unreadable.append(error)


def _rows_after_nms(prediction: Prediction, iou: float) -> np.ndarray:
    from torchvision.ops import batched_nms

    boxes = torch.from_numpy(prediction.boxes)
    scores = torch.from_numpy(prediction.scores)
    labels = torch.from_numpy(prediction.labels)
    return batched_nms(boxes, scores, labels, iou).numpy()
