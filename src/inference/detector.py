"""Run a checkpoint or an exported model on images. No separate configuration file is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from torch import Tensor

from ..core.errors import CheckpointError, ConfigError
from ..core.yaml_config import YAMLConfig
from ..data.dataset.decoding import ImageError
from ..data.dataset.picture import is_bit_depth
from ..detection.thresholds import drawing_threshold
from ..detection.weight_file import WeightFile
from ..runtime.finite import refuse_non_finite_outputs
from ..runtime.forks import prepare_torch_after_fork
from .engines import Engine, TorchEngine, batch_image_names
from .exported_engines import (
    ExportedEngine,
    OnnxEngine,
    OpenVinoEngine,
    TensorRtEngine,
)
from .inputs import as_images
from .opening import (
    EXPORTED,
    DetectorParts,
    checked_threshold,
    checkpoint_parts,
    exported_parts,
    refuse_unused,
    weights_parts,
)
from .prediction import Prediction
from .prediction_settings import DEFAULT_SETTINGS, PredictionSettings
from .prediction_stream import (
    Errors,
    ImagePrediction,
    predict_with_tiles,
    stream_predictions,
    usable_images,
)
from .preprocessing import Preprocessing
from .reading import Readable, batches, read_ahead
from .tiling import Tiling

ENGINES = ("torch", "auto")
"""Values of `engine`."""


class Detector:
    """Detect objects in images with a checkpoint or an exported model.

    Example:
        >>> from src import Detector
        >>> detector = Detector("best.pth", device="cpu")
        >>> for box, score, label, name in detector.predict("image.jpg"):
        ...     print(name, [round(value) for value in box], f"{score:.1f}")
        ring [31, 15, 59, 43] 0.8
        >>> detector.names
        {0: 'disc', 1: 'square', 2: 'triangle', 3: 'ring'}
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | None = None,
        config: str | Path | None = None,
        input_size: Sequence[int] | None = None,
        use_amp: bool = False,
        bit_depth: int | None = None,
        family: str | None = None,
        engine: str = "torch",
    ) -> None:
        """Open a checkpoint, a run folder, a published model or an exported model.

        Args:
            path: `best.pth`, `last.pth` or a published file; a run folder, whose `best.pth` is used if it has
                one, else its `last.pth`; the name of a model of `configs/models.yml`; or an exported file,
                which the end of its name shows: `.onnx` (ONNX Runtime), `.xml` (OpenVINO), `.engine`
                (TensorRT).
            device: cpu, cuda or cuda:N; None uses CUDA if available.
            config: as for `from_checkpoint`, only for checkpoints.
            input_size: as for `from_checkpoint`, only for checkpoints.
            use_amp: as for `from_checkpoint`, only for checkpoints.
            bit_depth: as for `from_checkpoint`, only for checkpoints.
            family: as for `from_checkpoint`, only for checkpoints.
            engine: as for `from_checkpoint`, only for checkpoints.

        Raises:
            CheckpointError: as for `from_checkpoint` and `from_onnx`.
            ConfigError: as for `from_checkpoint`, or if an argument is not used by an exported model.
        """
        if not isinstance(path, str | Path):
            raise ConfigError(
                f"Detector() was given a {type(path).__name__}, expected the path of a file; "
                "Detector.from_parts() combines an engine, preprocessing and classes"
            )
        open_engine = EXPORTED.get(Path(path).suffix.lower())
        if open_engine is None:
            parts = checkpoint_parts(
                path,
                device=device,
                config=config,
                input_size=input_size,
                use_amp=use_amp,
                bit_depth=bit_depth,
                family=family,
            )
        else:
            given = {
                "config": config,
                "input_size": input_size,
                "use_amp": use_amp or None,
                "bit_depth": bit_depth,
                "family": family,
                "engine": None if engine == "torch" else engine,
            }
            refuse_unused(path, given)
            parts = exported_parts(open_engine(path, device), path)
        self._use(parts)
        if open_engine is None:
            self._choose_engine(engine)

    def _choose_engine(self, engine: str) -> None:
        """Keep torch, or take the fastest engine of this machine.

        Raises:
            ConfigError: for another name.
        """
        if engine not in ENGINES:
            raise ConfigError(
                f"engine is {engine!r}, expected {' or '.join(ENGINES)}; for one engine in particular, "
                "export the checkpoint and open the file with from_onnx() or from_openvino()"
            )
        if engine == "auto":
            # by name, because the trial itself needs detectors
            choice = import_module(f"{__package__}.engine_choice")
            self.engine = choice.fastest_engine(self)

    def _use(self, parts: DetectorParts) -> None:
        """Store the parts of a detector.

        Raises:
            ConfigError: if the bit depth is out of range.
            CheckpointError: if the threshold is.
        """
        if not is_bit_depth(parts.bit_depth):
            raise ConfigError(
                f"bit_depth is {parts.bit_depth}, expected 8 to 16"
            )
        self.bit_depth = parts.bit_depth
        self.engine = parts.engine
        self.preprocessing = parts.preprocessing
        self.classes = list(parts.classes)
        self.meta = parts.meta or {}
        self.cfg = parts.cfg
        threshold = parts.threshold
        if threshold is not None:
            threshold = checked_threshold(threshold)
        self.threshold = drawing_threshold(threshold)
        self._process = os.getpid()
        self._ids = np.array([entry["id"] for entry in self.classes], np.int64)
        self._names = np.array(
            [entry["name"] for entry in self.classes], object
        )

    @property
    def names(self) -> dict[int, str]:
        """Name of the class of each label."""
        return dict(enumerate(self._names.tolist()))

    @classmethod
    def _of(cls, parts: DetectorParts) -> Detector:
        detector = cls.__new__(cls)
        detector._use(parts)
        return detector

    @classmethod
    def from_parts(
        cls,
        engine: Engine,
        preprocessing: Preprocessing,
        classes: Sequence[dict[str, Any]],
        threshold: float | None = None,
        meta: dict[str, Any] | None = None,
        cfg: YAMLConfig | None = None,
        bit_depth: int | None = None,
    ) -> Detector:
        """Combine the parts of a detector, for example with an engine of your own.

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

        Example:
            >>> first = Detector("best.pth", device="cpu")
            >>> second = Detector.from_parts(first.engine, first.preprocessing, first.classes)
            >>> second.threshold
            0.4
        """
        parts = DetectorParts(
            engine, preprocessing, classes, threshold, meta, cfg, bit_depth
        )
        return cls._of(parts)

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
        family: str | None = None,
        engine: str = "torch",
    ) -> Detector:
        """Load `best.pth`, `last.pth` or a published file (D-FINE, DEIM, DEIMv2, RT-DETRv4).

        Args:
            path: path of the checkpoint, or the name of a model of `configs/models.yml`, whose file is looked
                for in `weights/`; its EMA weights are used if it has any.
            device: cpu, cuda or cuda:N; None uses CUDA if available.
            config: a configuration file, for checkpoints without a configuration; None uses that of the model
                that the tensors show.
            input_size: (height, width) in pixels; None uses the size of the training.
            use_amp: compute in bf16, or in fp16 if the device has no bf16; CUDA only.
            bit_depth: number of bits, 8 to 16, that the samples of 16-bit images use; None uses the value of
                the training.
            family: family of the model, such as "deim", where its tensors fit several; None lets notes in the
                file or its name decide.
            engine: "torch"; or "auto", the fastest installed engine on the CPU of this machine. The first
                use exports the model, compares the predictions of ONNX Runtime and OpenVINO with those of
                torch, and measures all three; the result is cached.

        Raises:
            CheckpointError: if the file is damaged, does not fit its configuration, or has no configuration,
                none is given and its tensors are not those of a published model.
            ConfigError: if the device does not exist, the family is unknown, or the model cannot use the
                input size.
        """
        parts = checkpoint_parts(
            path,
            device=device,
            config=config,
            input_size=input_size,
            use_amp=use_amp,
            bit_depth=bit_depth,
            family=family,
        )
        detector = cls._of(parts)
        detector._choose_engine(engine)
        return detector

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
        parts = weights_parts(
            file,
            cfg,
            device,
            input_size=input_size,
            use_amp=use_amp,
            bit_depth=bit_depth,
        )
        return cls._of(parts)

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
        return cls._of(
            exported_parts(OnnxEngine(path, device, threads=threads), path)
        )

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
        return cls._of(
            exported_parts(OpenVinoEngine(path, device, threads=threads), path)
        )

    @classmethod
    def from_tensorrt(
        cls, path: str | Path, *, device: str | None = None
    ) -> Detector:
        """Load a TensorRT engine built from an exported model, with NAME.json beside it.

        Arguments and errors are those of `TensorRtEngine` and `from_onnx`.
        """
        return cls._of(exported_parts(TensorRtEngine(path, device), path))

    @overload
    def predict(
        self,
        images: Readable | Iterable[Readable],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        nms: float | None = None,
        tiling: Tiling | None = None,
        errors: Errors = "raise",
        stream: Literal[False] = False,
    ) -> Prediction | list[Prediction]: ...

    @overload
    def predict(
        self,
        images: Readable | Iterable[Readable],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        nms: float | None = None,
        tiling: Tiling | None = None,
        errors: Errors = "raise",
        stream: Literal[True],
    ) -> Iterator[Prediction]: ...

    def predict(
        self,
        images: Readable | Iterable[Readable],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        nms: float | None = None,
        tiling: Tiling | None = None,
        errors: Errors = "raise",
        stream: bool = False,
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Detect objects.

        Args:
            images: one image; several as an iterable, a generator, or a 4-dimensional array or tensor; or the
                path of a folder or a video. URLs are refused: download the files first.
            threshold: as in `PredictionSettings`.
            batch_size: as in `PredictionSettings`.
            nms: as in `PredictionSettings`.
            tiling: as in `PredictionSettings`.
            errors: "raise" raises the first error; "skip" gives an image that cannot be read, is not an
                image, or for which the model gives NaN an empty prediction with `Prediction.error`.
            stream: return a generator, which computes each batch when it is needed. Long videos, folders and
                generators then need little memory. `Detector.stream` also yields the images.

        Returns:
            The prediction for a single image, or a list with the prediction for each image or frame, in
            order. With `stream`, a generator of predictions in both cases.

        Raises:
            DataError: if an image cannot be read, a folder has no images, or a video is truncated.
            ConfigError: if an object is not an image, or is a URL; if the process was forked from the one
                that created this detector and its engine does not survive that.
            NumericsError: if the model gives NaN or infinity.

        Example:
            >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
            >>> found = detector.predict(["image.jpg", "images/val_00001.jpg"], threshold=0.5)
            >>> [prediction.size for prediction in found]
            [(64, 64), (64, 64)]
            >>> found = detector.predict(["missing.jpg", "image.jpg"], errors="skip")
            >>> [prediction.error for prediction in found]
            ['image missing.jpg cannot be read: No such file or directory', None]
            >>> for prediction in detector.predict("images", stream=True):
            ...     print(Path(prediction.source).name, len(prediction))
            ...     break
            val_00000.jpg 1
        """
        settings = PredictionSettings(threshold, batch_size, nms, tiling)
        inputs = as_images(images, skip_errors=errors == "skip")
        seen = self.stream(inputs.images, settings, errors=errors)
        found = map(attrgetter("prediction"), seen)  # keeps no image
        if stream:
            return found
        predictions = list(found)
        return predictions[0] if inputs.is_single else predictions

    def stream(
        self,
        images: Readable | Iterable[Readable],
        settings: PredictionSettings = DEFAULT_SETTINGS,
        *,
        errors: Errors = "raise",
        unreadable: list[ImageError] | None = None,
    ) -> Iterator[ImagePrediction]:
        """Detect objects in a stream of images, keeping only a few images in memory.

        An error is raised after the predictions for the images before it.

        Args:
            images: as for `predict`. An error of an iterable itself is raised whatever `errors` is.
            settings: settings of the prediction.
            errors: as for `predict`. The image of an image that cannot be read has no pixels.
            unreadable: list to which the errors of unreadable images are appended; these images are left out.
                None treats them according to `errors`.

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
        inputs = as_images(images, skip_errors=errors == "skip")
        size = self.engine.batch_size or settings.batch_size
        if size < 1:
            raise ConfigError(f"batch_size is {size}, expected at least 1")
        for name, value in (
            ("threshold", settings.threshold),
            ("nms", settings.nms),
        ):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value:g}, expected 0 to 1")
        if errors not in get_args(Errors):
            raise ConfigError(
                f'errors is {errors!r}, expected "raise" or "skip"'
            )
        predict = partial(
            self._predict_batch, threshold=settings.threshold, nms=settings.nms
        )
        if settings.tiling:
            # one image at a time, whose tiles make the batches
            predict = partial(
                predict_with_tiles, settings.tiling, predict, size
            )
            size = 1
        read = usable_images(
            read_ahead(inputs.images, ahead=2 * size, bit_depth=self.bit_depth),
            errors,
            unreadable,
        )
        return stream_predictions(batches(read, size), predict, errors)

    def _predict_batch(
        self,
        images: Sequence[Tensor],
        threshold: float | None,
        nms: float | None,
    ) -> list[Prediction]:
        """Return the detections of a batch of images with at least the minimum score."""
        self._prepare_after_fork()
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
                bit_depth=self.bit_depth,
            )
            if nms is not None:
                prediction = prediction.select(_rows_after_nms(prediction, nms))
            result.append(prediction)
        return result

    def _prepare_after_fork(self) -> None:
        """Make predictions work in a process that was forked from the one that loaded the model.

        Raises:
            ConfigError: if the engine does not survive a fork.
        """
        prepare_torch_after_fork()
        is_on_cpu = isinstance(self.engine, TorchEngine) and (
            self.engine.device.type == "cpu"
        )
        # other engines have threads or a device context of their own, which a fork does not copy
        is_known = isinstance(self.engine, TorchEngine | ExportedEngine)
        if os.getpid() != self._process and is_known and not is_on_cpu:
            raise ConfigError(
                f"this Detector was created in process {self._process} and cannot be used in process "
                f"{os.getpid()}, which was forked from it: create the Detector in each process, or start "
                "processes with multiprocessing's spawn method"
            )

    def _refuse_unknown_labels(self, labels: np.ndarray) -> None:
        """Check that every label of a batch has a class."""
        if labels.size and not 0 <= labels.min() <= labels.max() < len(
            self.classes
        ):
            raise CheckpointError(
                f"{self.meta.get('file', 'the model')} gives labels from {labels.min()} to {labels.max()}, "
                f"but its metadata names {len(self.classes)} classes"
            )


def _rows_after_nms(prediction: Prediction, iou: float) -> np.ndarray:
    """Return the rows that non-maximum suppression per class keeps, best first."""
    from torchvision.ops import batched_nms

    boxes = torch.from_numpy(prediction.boxes)
    scores = torch.from_numpy(prediction.scores)
    labels = torch.from_numpy(prediction.labels)
    return batched_nms(boxes, scores, labels, iou).numpy()
