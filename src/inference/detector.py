"""Run a checkpoint or an exported model on images. No separate configuration file is needed."""

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
from ..data.dataset.decoding import ImageError, inspect_image, inspect_pil
from ..data.dataset.picture import FLAG_TEXTS, ImageFlag, is_bit_depth
from ..detection.fitting import load_strictly
from ..detection.model_config import model_config
from ..detection.weight_file import WeightFile, read_weights
from ..runtime.distributed import pick_device
from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.log import logger
from .engines import Engine, TorchEngine, batch_image_names
from .exported_engines import (
    ExportedEngine,
    OnnxEngine,
    OpenVinoEngine,
    TensorRtEngine,
)
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

MAX_LISTED_FILES = 8
"""Maximum number of files that an error message names."""

READING_THREADS = 4
"""Threads that read images while the model computes."""


class ImagePrediction(NamedTuple):
    """An image and its prediction."""

    image: Tensor
    """`[3, H, W]` uint8, RGB."""
    prediction: Prediction


class Detector:
    """Detect objects in images with any engine.

    Example:
        >>> from src.inference import Detector
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> found = detector.predict("image.jpg")
        >>> for box, score, name in zip(found.boxes, found.scores, found.names):
        ...     print(name, box.round().astype(int).tolist(), f"{score:.1f}")
        ring [31, 15, 59, 43] 0.8
    """

    def __init__(
        self,
        engine: Engine,
        preprocessing: Preprocessing,
        classes: Sequence[dict[str, Any]],
        threshold: float | None = None,
        meta: dict[str, Any] | None = None,
        cfg: YAMLConfig | None = None,
        bit_depth: int | None = None,
    ) -> None:
        """Combine the parts of a detector. `from_checkpoint` and its siblings create detectors from files.

        Args:
            engine: engine that computes detections from preprocessed images.
            preprocessing: preprocessing of images.
            classes: `{"id": category id, "name": name}` for each label in order.
            threshold: default minimum score for `predict`; None uses 0.4.
            meta: metadata of the file.
            cfg: configuration of the training, if it is known.
            bit_depth: number of bits, 8 to 16, that the samples of 16-bit images use; None means 16.

        Raises:
            ConfigError: if the bit depth is out of range.
        """
        if not is_bit_depth(bit_depth):
            raise ConfigError(f"bit_depth is {bit_depth}, expected 8 to 16")
        self.bit_depth = bit_depth
        self.engine = engine
        self.preprocessing = preprocessing
        self.classes = list(classes)
        self.meta = meta or {}
        self.cfg = cfg
        self.threshold = DEFAULT_THRESHOLD
        if threshold is not None:
            self.threshold = _checked_threshold(threshold)
        self._ids = np.array([entry["id"] for entry in self.classes], np.int64)
        self._names = np.array(
            [entry["name"] for entry in self.classes], object
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        config: str | Path | None = None,
        input_size: Sequence[int] | None = None,
        use_amp: bool = False,
        bit_depth: int | None = None,
    ) -> Detector:
        """Load `best.pth`, `last.pth` or a file of D-FINE.

        Args:
            path: path of the checkpoint; its EMA weights are used if it has any.
            device: cpu, cuda or cuda:N; None uses CUDA if available.
            config: a configuration file, for checkpoints without a configuration.
            input_size: (height, width) in pixels; None uses the size of the training.
            use_amp: compute in bf16, or in fp16 if the device has no bf16; CUDA only.
            bit_depth: number of bits, 8 to 16, that the samples of 16-bit images use; None uses the value of
                the training.

        Raises:
            CheckpointError: if the file is damaged, does not fit its configuration, or has no configuration
                and none is given.
            ConfigError: if the device does not exist or the model cannot use the input size.
        """
        file = read_weights(path)
        picked = pick_device(device)
        cfg = model_config(file, config)
        return cls.from_weights(
            file,
            cfg,
            picked,
            input_size=input_size,
            use_amp=use_amp,
            bit_depth=bit_depth,
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
        bit_depth: int | None = None,
    ) -> Detector:
        """Build the model of a configuration and load weights that were read from a file.

        Args:
            file: the weights.
            cfg: configuration of the model, which is adjusted to the weights (`WeightFile.prepare`).
            device: device of the model.
            input_size: as for `from_checkpoint`.
            use_amp: as for `from_checkpoint`.
            bit_depth: as for `from_checkpoint`.

        Raises:
            CheckpointError: if the weights do not fit the configuration, or the file's own configuration has
                transforms that cannot be used.
            ConfigError: if the model cannot use the input size.
        """
        file.prepare(cfg)
        try:
            preprocessing = Preprocessing.from_config(cfg)
        except ConfigError as error:
            if not cfg.is_from_checkpoint:
                raise
            raise CheckpointError(f"{file.path}: {error}") from None
        if (
            input_size is not None
            and tuple(input_size) != preprocessing.input_size
        ):
            logger.warning(
                "input size %d x %d instead of %d x %d (height x width), which the model was trained for: "
                "accuracy may differ",
                *input_size,
                *preprocessing.input_size,
            )
            preprocessing = preprocessing.resized(input_size)
        cfg.set(
            "eval_spatial_size",
            list(preprocessing.input_size),
            "the input size",
        )
        model = cfg.model
        load_strictly(model, file)
        postprocessor = cfg.postprocessor.deploy()
        engine = TorchEngine(
            model.deploy(), postprocessor, device, use_amp=use_amp
        )
        notes = {
            key: value for key, value in file.meta.items() if key != "config"
        }
        notes["file"] = str(file.path)
        classes = file.named_classes
        return cls(
            engine,
            preprocessing,
            classes,
            file.threshold,
            notes,
            cfg,
            file.bit_depth if bit_depth is None else bit_depth,
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
        return cls._from_export(
            OpenVinoEngine(path, device, threads=threads), path
        )

    @classmethod
    def from_tensorrt(
        cls, path: str | Path, *, device: str | None = None
    ) -> Detector:
        """Load a TensorRT engine built from an exported model, with NAME.json beside it.

        Arguments and errors are those of `TensorRtEngine` and `from_onnx`.
        """
        return cls._from_export(TensorRtEngine(path, device), path)

    @classmethod
    def _from_export(cls, engine: ExportedEngine, path: str | Path) -> Detector:
        metadata = metadata_for(Path(path), engine.metadata)
        preprocessing = _exported_preprocessing(metadata, engine, path)
        classes = [dict(entry) for entry in metadata.classes]
        notes = {
            "file": str(path),
            "licences": metadata.licences,
            "commit": metadata.commit,
            "checkpoint": metadata.checkpoint,
        }
        return cls(
            engine,
            preprocessing,
            classes,
            metadata.threshold,
            notes,
            bit_depth=metadata.bit_depth,
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

        Example:
            >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
            >>> found = detector.predict(["image.jpg", "images/val_00001.jpg"], threshold=0.5)
            >>> [prediction.size for prediction in found]
            [(64, 64), (64, 64)]
        """
        settings = PredictionSettings(threshold, batch_size, nms, tiling)
        several, is_single = _as_several(images)
        found = [
            predicted.prediction for predicted in self.stream(several, settings)
        ]
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

        Example:
            >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
            >>> files = sorted(Path("images").iterdir())
            >>> for image, prediction in detector.stream(files[:2]):
            ...     print(Path(prediction.source).name, list(image.shape))
            val_00000.jpg [3, 64, 64]
            val_00001.jpg [3, 64, 64]
        """
        size = self.engine.batch_size or settings.batch_size
        if size < 1:
            raise ConfigError(f"batch_size is {size}, expected at least 1")
        for name, value in (
            ("threshold", settings.threshold),
            ("nms", settings.nms),
        ):
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
        images_per_step = 1 if tiling else size
        reading = _read_ahead(
            images, unreadable, self.bit_depth, ahead=2 * images_per_step
        )
        while True:
            chunk = list(islice(reading, images_per_step))
            if not chunk:
                return
            batch = [image for image, _ in chunk]
            try:
                if tiling:
                    found = [predict_tiled(batch[0], tiling, predict, size)]
                else:
                    found = predict(batch)
            except NumericsError as error:
                files = _listed_files(source for _, source in chunk)
                raise NumericsError(f"{error}{files}") from None
            for (image, source), prediction in zip(chunk, found):
                prediction = replace(
                    prediction, source=source, bit_depth=self.bit_depth
                )
                yield ImagePrediction(image, prediction)

    def _predict_batch(
        self,
        images: Sequence[Tensor],
        threshold: float | None,
        nms: float | None,
    ) -> list[Prediction]:
        """Return the detections of a batch of images with at least the minimum score."""
        found = self.engine(*self.preprocessing(images))
        labels = found[0].numpy()
        boxes = found[1].float().numpy()
        scores = found[2].float().numpy()
        image_names = batch_image_names(len(images))
        refuse_non_finite_outputs(
            {"scores": scores, "boxes": boxes}, image_names
        )
        minimum = self.threshold if threshold is None else threshold
        self._refuse_unknown_labels(labels)
        result = []
        for image, label, box, score in zip(images, labels, boxes, scores):
            kept = score >= minimum
            label = label[kept].astype(np.int64)
            prediction = Prediction(
                boxes=box[kept],
                scores=score[kept],
                labels=label,
                category_ids=self._ids[label],
                names=self._names[label].tolist(),
                size=(image.shape[2], image.shape[1]),
            )
            if nms is not None:
                prediction = prediction.select(_rows_after_nms(prediction, nms))
            result.append(prediction)
        return result

    def _refuse_unknown_labels(self, labels: np.ndarray) -> None:
        """Check that every label of a batch has a class."""
        if labels.size and not 0 <= labels.min() <= labels.max() < len(
            self.classes
        ):
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


def _listed_files(sources: Iterable[str | None]) -> str:
    """Return the files of a batch as the end of a message; an empty string if there are none."""
    files = [source for source in sources if source is not None]
    if not files:
        return ""
    more = ""
    if len(files) > MAX_LISTED_FILES:
        more = f" and {len(files) - MAX_LISTED_FILES} more"
    return f"; files of the batch: {', '.join(files[:MAX_LISTED_FILES])}{more}"


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
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
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


_WARNED: set[tuple[Path, ImageFlag]] = set()


def _warn_once(path: Path, flags: ImageFlag) -> None:
    """Warn, once for each folder, about properties of its image files that can be mistakes."""
    if ImageFlag.SEVERAL_FRAMES in flags:
        _warn_of_several_frames(path.parent)
    for flag in (
        ImageFlag.EXTRA_BANDS,
        ImageFlag.TWO_ORIENTATIONS,
        ImageFlag.LOW_RANGE,
    ):
        if flag in flags and (path.parent, flag) not in _WARNED:
            _WARNED.add((path.parent, flag))
            logger.warning(
                "%s has %s (first: %s)",
                path.parent,
                FLAG_TEXTS[flag],
                path.name or "an image without a file name",
            )


def read_image(
    image: Readable, bit_depth: int | None = None
) -> tuple[Tensor, str | None]:
    """Return an image as `[3, H, W]` uint8, RGB, and its file name if it came from a file.

    Args:
        image: the image.
        bit_depth: number of bits that the samples of 16-bit images use; None means 16.

    Example:
        >>> pixels, source = read_image("image.jpg")
        >>> pixels.shape, source
        (torch.Size([3, 64, 64]), 'image.jpg')

    Raises:
        ImageError: if a file cannot be read.
        ConfigError: if it is not an image, or an array with a wrong shape or type.
    """
    if isinstance(image, LabelledFile):
        pixels = _read_file(image.path, image.size, bit_depth)
        return pixels, str(image.path)
    if isinstance(image, str | Path):
        return _read_file(Path(image), None, bit_depth), str(image)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", None) or None
        pixels, flags = inspect_pil(image, bit_depth=bit_depth)
        _warn_once(Path(name or ""), flags)
        return pixels, name
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ConfigError(
            f"a {type(image).__name__} is not an image; pass a file, a PIL image, an array [H, W, 3] or a "
            "tensor [3, H, W]"
        )
    if isinstance(image, Tensor):
        pixels = image
        expected = "[3, H, W] uint8"
    else:
        pixels = _channels_first(image)
        expected = "[H, W, 3] (RGB) or [H, W] (grey), uint8"
    has_shape = (
        pixels.ndim == 3 and pixels.shape[0] == 3 and 0 not in pixels.shape
    )
    if pixels.dtype != torch.uint8 or not has_shape:
        raise ConfigError(
            f"an image of shape {list(image.shape)} and type {image.dtype} was given, expected {expected}"
        )
    return pixels.cpu(), None


def _read_file(
    path: Path, size: tuple[int, int] | None, bit_depth: int | None
) -> Tensor:
    """Read an image file; warn about properties that can be mistakes."""
    pixels, flags = inspect_image(path, size, bit_depth=bit_depth)
    _warn_once(path, flags)
    return pixels


def _channels_first(image: np.ndarray) -> Tensor:
    """Return an array `[H, W, 3]` or `[H, W]` as a tensor `[3, H, W]`; other shapes are not changed."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if pixels.ndim == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    if pixels.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    return pixels


def _read_ahead(
    images: Iterable[Readable],
    unreadable: list[ImageError] | None,
    bit_depth: int | None,
    *,
    ahead: int,
) -> Iterator[tuple[Tensor, str | None]]:
    """Read images in threads, up to `ahead` at a time, and yield them in order."""
    source = iter(images)
    waiting: deque[Future[tuple[Tensor, str | None]]] = deque()
    with ThreadPoolExecutor(READING_THREADS) as readers:
        while True:
            for image in islice(source, ahead - len(waiting)):
                waiting.append(readers.submit(read_image, image, bit_depth))
            if not waiting:
                return
            try:
                yield waiting.popleft().result()
            except ImageError as error:
                if unreadable is None:
                    raise
                unreadable.append(error)


def _rows_after_nms(prediction: Prediction, iou: float) -> np.ndarray:
    """Return the rows that non-maximum suppression per class keeps, best first."""
    from torchvision.ops import batched_nms

    boxes = torch.from_numpy(prediction.boxes)
    scores = torch.from_numpy(prediction.scores)
    labels = torch.from_numpy(prediction.labels)
    return batched_nms(boxes, scores, labels, iou).numpy()
