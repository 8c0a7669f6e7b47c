"""The configuration of one run: settings are validated at once, objects are built on first access."""

from __future__ import annotations

import copy
import dataclasses
import logging
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from .build import create, refuse_other_roles
from .config_file import ConfigTree, load_config_tree, parse_config_tree
from .detection_data import require_detection_data
from .durations import RunLength
from .errors import ConfigError
from .lengths import ResolvedLength, resolve_lengths, with_lengths
from .loader_contracts import DetectionLoader
from .package_configs import find_config
from .registry import Argument, components, find, shared_names
from .schemas import checked
from .validate import validate
from .yaml_text import dump_yaml

_logger = logging.getLogger("dfine")
"""The logger of `runtime.log`, which this package may not import."""


@dataclass
class RunSettings:
    """The top-level settings of a run, with their defaults."""

    task: Literal["detection"] = "detection"
    """No effect; accepted because D-FINE's files contain it. The debug log mentions it."""
    epochs: int = 72
    use_amp: bool = False
    compile: Literal["backbone"] | None = None
    """Part of the model that `torch.compile` compiles for training; None compiles nothing."""
    use_ema: bool = False
    sync_bn: bool = False
    find_unused_parameters: bool = False
    clip_max_norm: float = 0.0
    grad_accum_steps: int = 1
    grad_accum_exact: bool = True
    lr_base_batch_size: int | None = None
    """Batch size for which the learning rates were chosen; None uses them as they are."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """How rates follow the effective batch, relative to `lr_base_batch_size`."""
    best_metric: str = "AP"
    patience: int | None = None
    print_freq: int = 100
    pictures: bool = True
    checkpoint_freq: int = 0
    save_every_steps: int | None = None
    save_every_minutes: float | None = 15.0
    rank_timeout: float = 600.0
    memory_trial: bool | None = None
    seed: int | None = None
    device: str | None = None
    output_dir: str = "./output"
    overwrite: bool = False
    """Start a new run in the folder of another one, whose results are moved to `earlier/`."""
    report: bool = True
    """Write `report.html` about the best checkpoint at the end of a run."""
    summary_dir: str | None = None
    resume: str | None = None
    family: str | None = None
    """Family of the file of `-r` or `-t`, such as "deim", where its tensors fit several."""
    override: bool = False
    strict: bool = False
    tuning: str | None = None
    test_only: bool = False
    loggers: Sequence[
        Literal["csv", "tensorboard", "wandb", "mlflow", "clearml"]
    ] = ("csv", "tensorboard")
    """Destinations of the history of a run, besides `log.txt` and the terminal."""
    use_wandb: bool = False
    """The same as "wandb" in `loggers`."""
    project_name: str = "D-FINE"
    """Project or experiment of a run in a logging service."""
    exp_name: str = "baseline"
    """Name of the run there; "baseline" stands for the name of the output folder."""
    model: str | None = None
    criterion: str | None = None
    postprocessor: str | None = None
    minima: typing.ClassVar[dict[str, float]] = {
        "epochs": 1,
        "clip_max_norm": 0,
        "grad_accum_steps": 1,
        "lr_base_batch_size": 1,
        "patience": 1,
        "print_freq": 1,
        "checkpoint_freq": 0,
        "save_every_steps": 1,
        "save_every_minutes": 0,
        "rank_timeout": 1,
        "seed": 0,
    }

    def __post_init__(self) -> None:
        for name, least in self.minima.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(
                    f"{name} is {value}, expected at least {least}"
                )
        if self.lr_scaling != "linear" and self.lr_base_batch_size is None:
            raise ConfigError(
                f"lr_scaling is {self.lr_scaling!r}, but lr_base_batch_size is not set; set it to the batch "
                "size for which the learning rates were chosen, or remove lr_scaling"
            )


BLOCKS: dict[str, tuple[str, ...]] = {
    "train_dataloader": (),
    "val_dataloader": (),
    "evaluator": ("coco_gt",),
    "optimizer": ("model",),
    "lr_scheduler": ("optimizer",),
    "lr_warmup_scheduler": (),
    "ema": ("model",),
    "scaler": ("device",),
    "gram_anchoring": ("model",),
    "distillation": ("model",),
}
"""Top-level entries that hold `{type: Class, ...}`, with the arguments that the program supplies."""


BATCH_SETTINGS = ("batch_size", "total_batch_size")
"""Settings of a loader, of which one gives its batch."""

MODEL_ROLES = ("model", "postprocessor")
"""What can be built from the configuration in a checkpoint."""


class YAMLConfig:
    """A configuration file with its includes and overrides.

    `cfg.settings` are the settings of the run itself. `cfg.model`, `cfg.criterion`, `cfg.optimizer` ... build
    their objects on first access. `cfg.yaml_cfg` is the whole configuration as one dict.
    """

    _load_files = True
    is_from_checkpoint = False
    """Whether this is the configuration in a checkpoint, which describes only a model."""
    batch_of_recipe: dict[str, Any]
    """`batch_size` and `total_batch_size` of the training loader before the overrides.

    If it is "auto" there, they are the values that this has replaced, such as those of an included file.
    """
    _unknown_data: dict[str, Any] = {}  # noqa: RUF012  replaced, never changed
    """Loaders of a checkpoint's configuration whose data sets are not registered."""

    def __init__(self, path: str | Path, /, **overrides: Any) -> None:
        """Read and validate the configuration without building anything.

        Args:
            path: a .yml file.
            overrides: top-level keys that override the file; nested mappings are merged.

        Raises:
            ConfigError: one error that lists every fault found.
        """
        path = find_config(path)
        self._load(load_config_tree(path), path, overrides)
        if "task" in self.yaml_cfg:
            place = self.origin("task")
            _logger.debug(
                "task has no effect, every run is a detection (%s)", place
            )

    @classmethod
    def from_text(cls, text: str, name: str, **overrides: Any) -> YAMLConfig:
        """Read the configuration in a checkpoint, from YAML text without includes.

        It only describes a model: nothing else can be built from it, and building the model and the
        post-processor opens no file. A loader is left out if its data set is a user's class that is not
        imported, because using a model needs no data.

        Args:
            text: the YAML text.
            name: name of the source, for messages.
            overrides: as for the constructor.

        Raises:
            ConfigError: as for the constructor, or if the model has a part that is not a model's.
        """
        config = cls.__new__(cls)
        config._load_files = False
        config.is_from_checkpoint = True
        tree = parse_config_tree(text, name)
        config._unknown_data = {}
        for part in ("train_dataloader", "val_dataloader"):
            if _has_unknown_data(tree.values.get(part)):
                loader = tree.values[part]
                checked(loader, _Loader, file=name, part=part, advice=_ADVICE)
                config._unknown_data[part] = loader
                tree.remove(part)
        config._load(tree, name, overrides)
        for role in MODEL_ROLES:
            if config.yaml_cfg.get(role):
                refuse_other_roles(
                    role, config.yaml_cfg[role], config.yaml_cfg, name
                )
        return config

    @classmethod
    def from_run(cls, text: str, name: str, **overrides: Any) -> YAMLConfig:
        """Read the whole configuration of a run from its checkpoint, to continue or repeat the run.

        Args:
            text: YAML text without includes.
            name: name of the source, for messages.
            overrides: as for the constructor.

        Raises:
            ConfigError: as for the constructor.
        """
        config = cls.__new__(cls)
        config._load(parse_config_tree(text, name), name, overrides)
        return config

    def _load(
        self, tree: ConfigTree, path: str | Path, overrides: dict[str, Any]
    ) -> None:
        """Validate a configuration with its overrides, and store it."""
        self.batch_of_recipe = _batch_of(tree)
        tree.merge(overrides, "command line")
        tree.drop_unset(shared_names())
        tree.resolve_references()
        tree.expand_home()
        validate(tree, _top_level(), BLOCKS)
        self.path = Path(path)
        self._tree = tree
        self._run_length: RunLength | None = None
        self._lengths: list[ResolvedLength] | None = None
        known = tree.values.keys() & _top_level().keys()
        try:
            self.settings = RunSettings(
                **{name: tree.values[name] for name in known}
            )
        except ConfigError as error:
            key = str(error).partition(" ")[0]  # the text begins with the key
            raise ConfigError(f"{error} ({tree.origin((key,))})") from None

    @property
    def yaml_cfg(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self._tree.values

    def origin(self, *path: str | int) -> str:
        """Return the place of a setting, as "file:line"."""
        return self._tree.origin(path)

    def set(self, key: str, value: Any, reason: str) -> None:
        """Set a top-level key to a value found by the program; `reason` becomes its origin."""
        self._tree.merge({key: value}, reason)
        if hasattr(self.settings, key):
            setattr(self.settings, key, value)
        if self._run_length is None:
            self._lengths = None

    def resolve_lengths(self, run: RunLength) -> None:
        """Convert every length to an integer. Call this before building the parts that only training needs.

        Data loaders depend only on `settings.epochs`, so they may be built before. A model that is not
        trained needs no run length: lengths given in steps then keep the defaults of their arguments.

        Raises:
            RuntimeError: if the model has been built already.
        """
        if "model" in vars(self):
            raise RuntimeError(
                "the model was built before the lengths were resolved"
            )
        self._run_length = run
        self._lengths = resolve_lengths(self.yaml_cfg, run, BLOCKS)

    @property
    def lengths(self) -> list[ResolvedLength]:
        """All lengths that are not written as integers of their own unit."""
        if self._lengths is None:
            self._lengths = resolve_lengths(
                self.yaml_cfg, RunLength(self.settings.epochs), BLOCKS
            )
        return self._lengths

    @property
    def resolved_cfg(self) -> dict[str, Any]:
        """A copy of the configuration with integer lengths, from which components are built."""
        return with_lengths(self.yaml_cfg, self.lengths)

    def describe_lengths(self) -> str:
        """Return a YAML comment that lists the lengths as written and as integers; "" if there are none."""
        lines = [
            f"#   {length}\n"
            for length in self.lengths
            if length.unknown is None
        ]
        return "".join(["# Lengths in this run:\n", *lines]) if lines else ""

    @property
    def evaluation_transforms(self) -> list[dict[str, Any]]:
        """The transforms for evaluation, in order, as `{type: name, argument: value ...}`."""
        key = "val_dataloader"
        loader = self.yaml_cfg.get(key) or self._unknown_data.get(key) or {}
        dataset = self._section(loader.get("dataset"))
        transforms = self._section(dataset.get("transforms"))
        return copy.deepcopy(transforms.get("ops") or [])

    def _section(self, spec: Any) -> dict[str, Any]:
        """Return the settings of a component, which are given in place or in a section of their own."""
        settings = self.yaml_cfg.get(spec) if isinstance(spec, str) else spec
        return settings if isinstance(settings, dict) else {}

    def without_pretrained(self) -> None:
        """Disable pretrained weights of backbones, because a checkpoint will fill the whole model.

        Settings of backbones become `pretrained: False`, also for later runs with this configuration. In no
        case does building the model open a file.
        """
        self._load_files = False
        for component in components():
            if (
                component.name in self.yaml_cfg
                and "pretrained" in component.arguments
            ):
                disabled = {"pretrained": False}
                self.set(component.name, disabled, "a checkpoint was given")

    def save(self, path: str | Path) -> None:
        """Write the configuration as one YAML file; a comment at its top lists the lengths as integers."""
        text = self.describe_lengths() + self.to_yaml()
        Path(path).write_text(text, encoding="utf-8")

    def to_yaml(self) -> str:
        """Return the configuration as YAML text, with lengths as they were written."""
        return dump_yaml(self.yaml_cfg)

    @cached_property
    def model(self) -> Any:
        """The detector, on the CPU, with its pretrained weights loaded."""
        return self._create_named("model")

    @cached_property
    def criterion(self) -> Any:
        """The training loss."""
        return self._create_named("criterion")

    @cached_property
    def postprocessor(self) -> Any:
        """The post-processor, which converts model outputs to detections."""
        return self._create_named("postprocessor")

    @cached_property
    def train_dataloader(self) -> DetectionLoader:
        """Batches of augmented images with targets."""
        return self._create_loader("train_dataloader")

    @cached_property
    def val_dataloader(self) -> DetectionLoader:
        """Batches of evaluation images."""
        return self._create_loader("val_dataloader")

    @cached_property
    def optimizer(self) -> Any:
        """The optimizer over the parameters of `model`, in the groups that the configuration names.

        The parameters of `distillation` form a last group, with the optimizer's own settings.
        """
        optimizer = self._create_block("optimizer", model=self.model)
        if self.distillation is not None:
            own = self.distillation.parameters()
            if own:
                group = {"params": own, "name": "distillation"}
                optimizer.add_param_group(group)
        return optimizer

    @cached_property
    def lr_scheduler(self) -> Any:
        """The learning-rate schedule over epochs, or None."""
        return self._create_block("lr_scheduler", optimizer=self.optimizer)

    @cached_property
    def lr_warmup_scheduler(self) -> Any:
        """The learning-rate warm-up over steps, or None."""
        return self._create_block("lr_warmup_scheduler")

    @cached_property
    def ema(self) -> Any:
        """The exponential moving average (EMA) of `model`, or None if `use_ema` is off."""
        if not self.settings.use_ema:
            return None
        return self._create_block("ema", model=self.model)

    @cached_property
    def gram_anchoring(self) -> Any:
        """The loss that keeps the backbone near DINOv3, or None."""
        return self._create_block("gram_anchoring", model=self.model)

    @cached_property
    def distillation(self) -> Any:
        """The loss that compares the model with a teacher, or None."""
        return self._create_block("distillation", model=self.model)

    def scaler(self, device: str) -> Any:
        """Build the gradient scaler for fp16 on a type of device, or return None."""
        return self._create_block("scaler", device=device)

    def evaluator(self, coco_gt: Any) -> Any:
        """Build the evaluator for the ground truth of a data set."""
        return self._create_block("evaluator", coco_gt=coco_gt)

    def _create_loader(self, key: str) -> DetectionLoader:
        loader = self._create_block(key)
        if loader is None:
            raise ConfigError(
                f"{self.path} has no '{key}', a loader such as DataLoader with a dataset"
            )
        require_detection_data(getattr(loader, "dataset", None))
        return loader

    def _create_named(self, key: str) -> Any:
        name = self.yaml_cfg.get(key)
        if not name:
            raise ConfigError(
                f"{self.path} names no '{key}'; set it to a registered class such as DFINE"
            )
        if self.is_from_checkpoint and key not in MODEL_ROLES:
            raise self._describes_only_a_model(key)
        return create(name, self.resolved_cfg, load_files=self._load_files)

    def _describes_only_a_model(self, key: str) -> ConfigError:
        return ConfigError(
            f"{self.path} describes only a model, so {key} cannot be built from it; give a configuration "
            "file with -c"
        )

    def _create_block(self, key: str, **runtime: Any) -> Any:
        if self.is_from_checkpoint:
            raise self._describes_only_a_model(key)
        unknown = [
            length.unknown
            for length in self.lengths
            if length.unknown and length.path[0] == key
        ]
        if unknown:
            raise ConfigError(unknown[0])
        config = self.resolved_cfg
        block = config.get(key)
        return create(block, config, **runtime) if block else None


class _Transform(Struct):
    type: str


class _Transforms(Struct):
    ops: list[_Transform] | None = None


class _Dataset(Struct):
    type: str
    transforms: _Transforms | str | None = None


class _Loader(Struct):
    """The settings of a loader that evaluation needs of a data set that is not registered."""

    dataset: _Dataset | str


_ADVICE = "the configuration in the file is damaged or was changed"


def _has_unknown_data(loader: Any) -> bool:
    """Return whether the settings of a loader name a data set that is not registered."""
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    name = dataset.get("type") if isinstance(dataset, dict) else dataset
    return isinstance(name, str) and find(name) is None


def _batch_of(tree: ConfigTree) -> dict[str, Any]:
    """Return the settings of the batch of the training loader; a fault is reported by the validation."""
    loader = tree.values.get("train_dataloader")
    if not isinstance(loader, dict):
        return {}
    if loader.get("total_batch_size") == "auto":
        before = {}
        for name in BATCH_SETTINGS:
            before[name] = tree.replaced.get(("train_dataloader", name))
        return before
    return {name: loader[name] for name in BATCH_SETTINGS if name in loader}


def _top_level() -> dict[str, Argument]:
    """Return the settings of `RunSettings` with their defaults and types."""
    types = typing.get_type_hints(RunSettings)
    arguments = {}
    for field in dataclasses.fields(RunSettings):
        arguments[field.name] = Argument(field.default, types[field.name])
    return arguments
