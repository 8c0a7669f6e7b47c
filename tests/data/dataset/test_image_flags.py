"""Flags of images are shared by the loading processes."""

import torch

from src.data.dataset.decoding import ImageFlag
from src.data.dataset.image_flags import ImageFlags
from src.runtime.distributed import rank
from tests.fixtures.processes import on_ranks


def test_image_may_have_several_flags():
    marks = ImageFlags(4)
    marks.add(2, ImageFlag.CMYK)
    marks.add(2, ImageFlag.ROTATED | ImageFlag.CMYK)
    found = {mark: marks.images(mark) for mark in ImageFlag}
    assert {mark: images for mark, images in found.items() if images} == {
        ImageFlag.ROTATED: [2],
        ImageFlag.CMYK: [2],
    }


def test_new_flags_are_reported_once():
    marks = ImageFlags(4)
    marks.add(2, ImageFlag.CMYK)
    assert (
        marks.take_news(ImageFlag.CMYK),
        marks.take_news(ImageFlag.CMYK),
    ) == (
        [2],
        [],
    )
    marks.add(1, ImageFlag.CMYK)
    marks.add(2, ImageFlag.ROTATED)
    assert (
        marks.take_news(ImageFlag.CMYK),
        marks.take_news(ImageFlag.ROTATED),
    ) == (
        [1],
        [2],
    )


def test_flags_set_by_another_process_are_seen():
    marks = ImageFlags(4)
    context = torch.multiprocessing.get_context("fork")
    process = context.Process(target=marks.add, args=(3, ImageFlag.UNREADABLE))
    process.start()
    process.join()
    assert marks.images(ImageFlag.UNREADABLE) == [3]


def test_ranks_join_their_flags():
    def work():
        marks = ImageFlags(4)
        marks.add(rank(), ImageFlag.CMYK)
        marks.add(3, (ImageFlag.ROTATED, ImageFlag.UNREADABLE)[rank()])
        marks.join_ranks()
        return [marks.images(mark) for mark in list(ImageFlag)[:5]]

    assert on_ranks(2, work) == [[[3], [], [3], [0, 1], []]] * 2
