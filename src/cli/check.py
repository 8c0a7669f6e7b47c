"""Find all faults of a data set and its images in one pass; --fix writes fixed copies.

    dfine check DATA

    dfine check --annotations train.json --images images/

    dfine check --annotations train.json --images train/ \\
        --val-annotations val.json --val-images val/ --fix clean/

    dfine check -c configs/dfine/custom/dfine_dinov3_s_custom.yml \\
        -u train_dataloader.dataset.ann_file=train.json ...

Each fault is one line with file and id. The exit code is 3 if there is a fault (with --fix: a fault
that is left), otherwise 0. Findings that training fixes without losing labels are remarks.
docs/data.md lists the kinds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .common import add_dataset_arguments, parser_for, run, user_path


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = parse_arguments(argv, prog)
    run(lambda: check_data(arguments), arguments)


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    _add_data_arguments(parser)
    parser.add_argument(
        "--queries",
        type=int,
        help="maximum number of objects per image that can be found; default: the configuration's, or 300",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="read only the headers of images, as train.py does at its start; truncated files are not found",
    )
    parser.add_argument(
        "--fix",
        type=user_path,
        metavar="DIR",
        help="write fixed copies into this folder: train.json (and val.json)",
    )
    parser.add_argument(
        "--boxes",
        choices=("xywh", "xyxy", "cxcywh", "yxyx", "yxhw"),
        help="order of the numbers in bbox, if it is not COCO's xywh; --fix converts it",
    )
    parser.add_argument(
        "--units",
        choices=("pixels", "fraction", "percent", "permille"),
        help="unit of bbox, if it is not pixels; --fix converts it",
    )
    parser.add_argument(
        "--bit-depth",
        type=int,
        choices=range(8, 17),
        metavar="BITS",
        help="bits that the samples of 16-bit images use; default: the configuration's, or 16",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="training size, to find boxes that become too small; default: the configuration's, or 640 640",
    )
    parser.add_argument(
        "--report",
        type=user_path,
        metavar="FILE",
        help="write all findings as JSON",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=20,
        metavar="N",
        help="lines to print for each kind of fault; default: 20",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=4,
        help="threads that decode images; default: 4",
    )
    return parser


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the data: a data set, COCO files with their folders, or a configuration."""
    parser.add_argument(
        "dataset",
        nargs="?",
        type=user_path,
        metavar="DATA",
        help="the same as --data",
    )
    add_dataset_arguments(parser, split=False)
    parser.add_argument(
        "--annotations",
        type=user_path,
        metavar="FILE",
        help="COCO file of the training data",
    )
    parser.add_argument(
        "--images",
        type=user_path,
        metavar="DIR",
        help="image folder, to which the file names are relative",
    )
    parser.add_argument(
        "--val-annotations",
        type=user_path,
        metavar="FILE",
        help="COCO file of the validation data, compared with the first",
    )
    parser.add_argument(
        "--val-images",
        type=user_path,
        metavar="DIR",
        help="image folder of the validation data; default: --images",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="take files, folders and the number of queries from a configuration",
    )
    parser.add_argument(
        "-u",
        "--update",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override settings of the configuration, as for train.py",
    )


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Return the arguments, which agree with each other."""
    parser = make_parser(prog)
    arguments = parser.parse_args(argv)
    if (
        arguments.workers < 1
        or arguments.show < 0
        or (arguments.queries is not None and arguments.queries < 1)
    ):
        parser.error(
            "--workers and --queries must be at least 1, --show at least 0"
        )
    if arguments.dataset and arguments.data:
        parser.error("DATA and --data name two data sets")
    arguments.data = arguments.data or arguments.dataset
    if arguments.data and (arguments.annotations or arguments.images):
        parser.error("pass --data, or --annotations and --images")
    if (
        not arguments.config
        and not arguments.data
        and not (arguments.annotations and arguments.images)
    ):
        parser.error("pass a data set, or --annotations and --images, or -c")
    return arguments


def check_data(arguments: argparse.Namespace) -> None:
    """Check the data sets, and write fixed copies if asked for."""
    from ..data.preparation.check import check
    from ..data.preparation.fix import copies_of, describe, fix
    from ..data.preparation.image_file_check import ImageCheck
    from ..runtime.files import prepare_output_dir
    from ..runtime.log import say
    from ..runtime.own_files import prepare_report

    def show(lines):
        for line in lines:
            say(line)

    # results that cannot be written are refused before the images are read
    if arguments.report:
        prepare_report(arguments.report, "--report")
    found = found_dataset(arguments)
    data_sets, queries, transforms = selected_data(arguments, found)
    copies = copies_of(data_sets, arguments.fix) if arguments.fix else []
    images = ImageCheck(decode=not arguments.quick, workers=arguments.workers)
    report = check(data_sets, images, queries=queries, transforms=transforms)
    show(report.summaries())
    show(report.lines(arguments.show))
    if arguments.report:
        report.write(arguments.report)
    if arguments.fix:
        del report  # frees memory before the copies are checked
        prepare_output_dir(arguments.fix)
        for data, copy in zip(data_sets, copies):
            counts = fix(data, copy.annotations, images)
            show(describe(data, copy.annotations, counts))
        report = check(copies, images, queries=queries, transforms=transforms)
        show(report.summaries())
        show(["what is left:", *report.lines(arguments.show)])
    report.raise_if_faulty()
    if found is not None:
        found.raise_if_dropped()


def selected_data(arguments: argparse.Namespace, found):
    """Return the data sets, the maximum number of objects per image, and the training transforms."""
    from ..core import YAMLConfig
    from ..core.config_file import parse_overrides
    from ..data.dataset.box_formats import BoxFormat
    from ..data.preparation.data_set import (
        DataSet,
        data_sets_of,
        training_transforms,
    )

    queries = None
    transforms = default_transforms(arguments.size or (640, 640))
    if arguments.config:
        overrides = parse_overrides(arguments.update)
        config = YAMLConfig(arguments.config, **overrides).resolved_cfg
        data_sets, queries = data_sets_of(config)
        if arguments.size is None:
            transforms = training_transforms(config)
    if found is not None:
        links = arguments.follow_links
        data_sets = [DataSet(found.train_ann, found.train_images, links)]
        if found.val_ann != found.train_ann:
            data_sets.append(DataSet(found.val_ann, found.val_images, links))
    elif not arguments.config:
        data_sets = [DataSet(arguments.annotations, arguments.images)]
        if arguments.val_annotations:
            val_images = arguments.val_images or arguments.images
            data_sets.append(DataSet(arguments.val_annotations, val_images))
    changes: dict[str, Any] = {}
    if arguments.boxes or arguments.units:
        order: Any = arguments.boxes or "xywh"
        changes["box_format"] = BoxFormat(order, arguments.units or "pixels")
    if arguments.bit_depth is not None:
        changes["bit_depth"] = arguments.bit_depth
    data_sets = [replace(data, **changes) for data in data_sets]
    return data_sets, arguments.queries or queries or 300, transforms


def found_dataset(arguments: argparse.Namespace):
    """Return the data set of `--data`, and print what was found; None without `--data`."""
    from ..data.preparation.any_dataset import find_dataset
    from ..runtime.log import say

    if not arguments.data:
        return None
    found = find_dataset(
        arguments.data,
        data_format=arguments.data_format,
        images=arguments.data_images,
        follow_links=arguments.follow_links,
        split=False,
    )
    for line in (*found.remarks, *found.warnings):
        say(line)
    return found


def default_transforms(size_hw):
    """Return the deterministic transforms that all configurations apply to each training image."""
    from ..data.transforms import Compose, Resize, SanitizeBoundingBoxes

    return Compose([Resize(list(size_hw)), SanitizeBoundingBoxes(min_size=1)])
