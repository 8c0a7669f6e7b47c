"""Distillation of a trained detector into another one: its encoder's map and its confident detections.

The teacher is not a part of the model, its EMA, `best.pth` or `last.pth`. It sees the augmented images.
Student and teacher may differ in everything; their classes are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contracts import LearnsDetections, Lesson, TaughtDetections
from ..core.errors import CheckpointError, ConfigError, NumericsError
from ..core.registry import register
from ..detection.weight_file import read_weights
from ..runtime.distributed import mean_over_ranks
from ..runtime.log import logger
from .detector_teacher import DetectorTeacher, detector_of
from .distillation import EncoderDistillation
from .gradient_share import GradientShareWeight
from .teacher_classes import ClassRows, class_names_of, matched_rows


@register()
class DetectorDistillation:
    """Losses that pull a detector towards a frozen teacher, which is a detector too.

    The encoder part compares the maps behind the self-attention of the coarsest level. The decoder part makes
    the teacher's confident detections soft targets of the student's last layer.

    In each step, `consult` comes before the forward passes of the student, and `teach` after each of them.

    Source: the encoder part is that of RT-DETRv4, 2025, with another teacher. Soft targets of matched queries
    follow DETRDistill, Chang et al., 2022.
    """

    __role__ = "distillation"
    __load__ = "load_teacher"

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: str,
        config: str | None = None,
        family: str | None = None,
        encoder_weight: float | None = 5.0,
        encoder_share: float | None = 2.0,
        encoder_tolerance: float = 0.5,
        encoder_default_weight: float | None = None,
        decoder_weight: float | None = 0.5,
        min_score: float = 0.3,
        max_detections: int = 100,
    ) -> None:
        """Store the settings and find the student's map; `load_teacher` builds the teacher.

        Args:
            model: the unwrapped student.
            teacher: checkpoint file, run folder, or name of a published detector in `weights/`.
            config: configuration of the teacher; None uses the one in the file, or that of the published
                model that the file holds.
            family: family of the teacher, such as "deim", where its tensors fit several.
            encoder_weight: weight of the encoder part in the first epoch; None disables this part.
            encoder_share: share of the gradient, in percent, that the attention of the student's coarsest
                level gets of that of all parameters. The weight follows it from epoch to epoch; None keeps
                the weight constant.
            encoder_tolerance: permitted distance from `encoder_share`, in percent.
            encoder_default_weight: weight of the encoder part in the final stage without strong augmentation;
                None keeps the last one.
            decoder_weight: weight of the decoder part in the first epoch; it falls linearly to 0 at the final
                stage without strong augmentation, or at the end of a run without this stage. None disables
                this part.
            min_score: a query of the teacher is used if its largest class probability is above this, 0..1.
            max_detections: maximum number of queries of the teacher that are used in an image.

        Raises:
            ConfigError: if a value is out of range, or no part is left.
        """
        _check_decoder_settings(decoder_weight, min_score, max_detections)
        self.source = teacher
        self.config = config
        self.family = family
        self.encoder: EncoderDistillation | None = None
        if encoder_weight is not None:
            control = GradientShareWeight(
                encoder_weight,
                encoder_share,
                encoder_tolerance,
                encoder_default_weight,
                prefix="encoder_",
            )
            self.encoder = _encoder_part(model, control, "student")
        self.start_weight = decoder_weight or 0.0
        self.decoder_weight = self.start_weight
        self.min_score = min_score
        self.max_detections = max_detections
        self.teacher: DetectorTeacher | None = None
        self._classes = ClassRows(None, None)
        self._teacher_names: list[str] | None = None
        self._device = torch.device("cpu")
        self._require_a_part()

    def load_teacher(self) -> None:
        """Build the teacher from its file.

        Raises:
            CheckpointError: if the file does not exist, holds no detector, or has weights that are not
                finite or do not fit.
            ConfigError: if the configuration of the teacher has faults.
        """
        try:
            file = read_weights(self.source, self.family)
            model = detector_of(file, self.config)
        except ConfigError as error:
            raise ConfigError(f"distillation.teacher: {error}") from None
        except (CheckpointError, NumericsError) as error:
            raise CheckpointError(f"distillation.teacher: {error}") from None
        self.use_teacher(model, class_names_of(file))

    def use_teacher(
        self, model: nn.Module, class_names: Sequence[str] | None
    ) -> None:
        """Set the teacher.

        Args:
            model: detector with its weights; it is copied into the form for inference.
            class_names: name of each class of its head; None if they are not known.

        Raises:
            ConfigError: if no part of the distillation is left, because the teacher has no attention on its
                coarsest level.
        """
        self.teacher = DetectorTeacher(model)
        self._teacher_names = list(class_names) if class_names else None
        if self.encoder is not None and self.teacher.width is None:
            _log_missing_part("teacher", model)
            self.encoder = None
        if self.encoder is not None and self.teacher.width is not None:
            self.encoder.project_to(self.teacher.width)
        self._require_a_part()
        logger.info(
            "distillation: the teacher %s has %.1f M parameters; parts: %s",
            self.source,
            self.teacher.num_parameters / 1e6,
            ", ".join(self._parts()),
        )

    def match_classes(
        self, class_names: Sequence[str] | None, num_classes: int
    ) -> None:
        """Match the classes of the student with those of the teacher, by name.

        Classes that only the teacher has are dropped. Classes that only the student has get no class signal
        from the teacher.

        Args:
            class_names: classes of the data in the order of their labels; None treats both sides as equal.
            num_classes: number of classes of the student's head, C.

        Raises:
            ConfigError: if no class is shared.
        """
        if not self.start_weight:
            return
        assert self.teacher is not None
        theirs = self.teacher.num_classes
        rows = matched_rows(
            class_names, num_classes, self._teacher_names, theirs, self.source
        )
        self._classes = ClassRows.of(rows, theirs)
        self._classes.to(self._device)

    @property
    def weight(self) -> float:
        """Factor on the loss of the encoder part in the epoch in progress; 0 without this part."""
        return self.encoder.weight if self.encoder else 0.0

    @property
    def needs_criterion(self) -> bool:
        """True if the criterion computes a part of the losses (`LearnsDetections`)."""
        return self.start_weight > 0

    def to(self, device: torch.device | str) -> DetectorDistillation:
        """Move teacher and projector to a device."""
        self._device = torch.device(device)
        assert self.teacher is not None
        self.teacher.to(self._device)
        self._classes.to(self._device)
        if self.encoder is not None:
            self.encoder.projector.to(device)
        return self

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the projector."""
        return self.encoder.parameters() if self.encoder else []

    def attach(self) -> None:
        """Start recording forward passes of the student, but not of later copies of it."""
        if self.encoder is not None:
            self.encoder.attach()

    def detach(self) -> None:
        """Stop recording and discard the last forward pass."""
        if self.encoder is not None:
            self.encoder.detach()

    @torch.no_grad()
    def consult(self, batches: Iterable[Tensor]) -> list[Lesson]:
        """Run the teacher for all batches of an accumulation window. All ranks must call this together.

        Args:
            batches: images of each batch, `[B, 3, H, W]` in 0..1; H and W are multiples of 32.

        Returns:
            A lesson for each batch. Its detections have one normalizer for the whole window and all ranks.
        """
        lessons = [self._look(images) for images in batches]
        detections = [lesson.detections for lesson in lessons]
        if not self.decoder_weight or not detections:
            return lessons
        sums = [part.scores.sum() for part in detections if part is not None]
        mean = mean_over_ranks(torch.stack(sums).sum()).clamp(min=1)
        normalized = []
        for lesson in lessons:
            assert lesson.detections is not None
            part = lesson.detections._replace(normalizer=mean)
            normalized.append(lesson._replace(detections=part))
        return normalized

    def teach(
        self,
        lesson: Lesson,
        outputs: dict[str, Any],
        criterion: nn.Module,
        fraction: float,
    ) -> dict[str, Tensor]:
        """Return the weighted losses of the last forward pass of the student.

        Args:
            lesson: result of `consult` for its images.
            outputs: outputs of the student in training mode.
            criterion: the criterion, which computes the decoder part.
            fraction: fraction of the window's images in this batch.

        Returns:
            Float32 scalars: `loss_distill` of the encoder part, and `loss_soft_...` of the decoder part.
        """
        losses: dict[str, Tensor] = {}
        if self.encoder is not None and lesson.map is not None:
            seen = self.encoder.take_seen()
            if seen is not None:
                distance = self.encoder.distance(seen.map, lesson.map)
                losses["loss_distill"] = self.weight * distance * fraction
        if lesson.detections is not None and isinstance(
            criterion, LearnsDetections
        ):
            terms = criterion.taught_terms(outputs, lesson.detections)
            for name, value in terms.items():
                losses[name] = value * self.decoder_weight
        return losses

    def __call__(self, images: Tensor) -> Tensor | None:
        """Return the weighted loss of the encoder part alone, and discard the student's last pass.

        Args:
            images: images of that pass, `[B, 3, H, W]` in 0..1.
        """
        if self.encoder is None or self.teacher is None:
            return None
        seen = self.encoder.take_seen()
        if seen is None:
            return None
        map_of_teacher, _ = self.teacher(images, detect=False)
        assert map_of_teacher is not None
        return self.weight * self.encoder.distance(seen.map, map_of_teacher)

    def average_gradients(self) -> None:
        """Average the projector's gradients over ranks. All ranks must call this together."""
        if self.encoder is not None:
            self.encoder.average_gradients()

    def observe(self, parameters: Sequence[Tensor]) -> None:
        """Read the gradients of a step, given all parameters that have one."""
        if self.encoder is not None:
            self.encoder.observe(parameters)

    def begin_epoch(self, *, final_stage: bool, progress: float = 0.0) -> None:
        """Set both weights of an epoch; it can begin again after a resume.

        Args:
            final_stage: whether the epoch is of the final stage without strong augmentation.
            progress: fraction of the epochs before this stage that are over, 0..1.
        """
        left = 0.0 if final_stage else max(0.0, 1 - progress)
        self.decoder_weight = self.start_weight * left
        if self.encoder is not None:
            self.encoder.begin_epoch(final_stage=final_stage)

    def end_epoch(self) -> dict[str, float]:
        """Set the weight of the next epoch, and return weights and share of this one for its record."""
        record = self.encoder.end_epoch() if self.encoder else {}
        if self.start_weight:
            record["distillation_decoder_weight"] = self.decoder_weight
        return record

    def forget_epoch(self) -> None:
        """Discard what was observed in the epoch in progress."""
        if self.encoder is not None:
            self.encoder.forget_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the projector, the weight of the encoder part, and what was observed in this epoch.

        The weight of the decoder part follows from the epoch.
        """
        if self.encoder is None:
            return {"projector": {}, "weight": None}
        return self.encoder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`.

        Raises:
            CheckpointError: if the projector has another shape, or only one side has an encoder part.
        """
        if self.encoder is not None:
            self.encoder.load_state_dict(state)
        elif state["projector"]:
            raise CheckpointError(
                "the distillation has a projector for the encoder part, which is disabled now; restore "
                "distillation as it was, or start a new run from its weights with -t"
            )

    def _look(self, images: Tensor) -> Lesson:
        """Run the parts of the teacher that are needed now."""
        assert self.teacher is not None
        detect = self.decoder_weight > 0
        if not detect and self.encoder is None:
            return Lesson(None, None)
        seen, predictions = self.teacher(images, detect=detect)
        detections = None
        if predictions is not None:
            detections = self._confident(*predictions)
        return Lesson(seen if self.encoder else None, detections)

    def _confident(self, logits: Tensor, boxes: Tensor) -> TaughtDetections:
        """Return the most confident queries of each image.

        Args:
            logits: class logits of the teacher, `[B, Q, C']`.
            boxes: boxes of the teacher, `[B, Q, 4]` cxcywh in 0..1.
        """
        probabilities = self._classes.select(logits.float().sigmoid())
        best = probabilities.amax(-1)  # [B, Q]
        count = min(self.max_detections, best.shape[1])
        scores, query = best.topk(count, dim=1)  # [B, K]
        used = scores > self.min_score
        rows = query[..., None]
        return TaughtDetections(
            scores=scores * used,
            counts=used.sum(1),
            probabilities=probabilities.take_along_dim(rows, 1),
            boxes=boxes.float().take_along_dim(rows, 1),
            known=self._classes.known,
            normalizer=1.0,
        )

    def _parts(self) -> list[str]:
        """Return the names of the parts in use."""
        parts = ["encoder"] if self.encoder is not None else []
        return [*parts, "decoder"] if self.start_weight else parts

    def _require_a_part(self) -> None:
        if not self._parts():
            raise ConfigError(
                "distillation has neither an encoder part nor a decoder part; set "
                "distillation.decoder_weight=0.5, or train without distillation: -u distillation=~"
            )


def _encoder_part(
    model: nn.Module, control: GradientShareWeight, side: str
) -> EncoderDistillation | None:
    """Return the encoder part, or None after a log line if the model has no attention."""
    try:
        return EncoderDistillation(model, control)
    except ConfigError:
        _log_missing_part(side, model)
        return None


def _log_missing_part(side: str, model: nn.Module) -> None:
    encoder = type(getattr(model, "encoder", None)).__name__
    logger.warning(
        "distillation: the %s's %s has no attention on its coarsest level, so the encoder part is disabled",
        side,
        encoder,
    )


def _check_decoder_settings(
    weight: float | None, min_score: float, max_detections: int
) -> None:
    if weight is not None and not 0 <= weight < float("inf"):
        raise ConfigError(
            f"distillation.decoder_weight is {weight}, expected a number of at least 0, or ~ to disable the "
            "decoder part"
        )
    if not 0 <= min_score < 1:
        raise ConfigError(
            f"distillation.min_score is {min_score}, expected a score from 0 up to but not including 1"
        )
    if max_detections < 1:
        raise ConfigError(
            f"distillation.max_detections is {max_detections}, expected at least 1"
        )
