"""Marks on images are shared by the processes that load."""

import torch

from src.data.dataset.decoding import Mark
from src.data.dataset.image_flags import ImageFlags
from src.runtime.distributed import rank
from tests.fixtures.processes import on_ranks


def test_image_may_bear_several_marks():
    marks = ImageFlags(4)
    marks.add(2, Mark.CMYK)
    marks.add(2, Mark.TURNED | Mark.CMYK)
    assert [marks.images(mark) for mark in Mark] == [[], [], [2], [2], []]


def test_news_are_told_once():
    marks = ImageFlags(4)
    marks.add(2, Mark.CMYK)
    assert (marks.take_news(Mark.CMYK), marks.take_news(Mark.CMYK)) == ([2], [])
    marks.add(1, Mark.CMYK)
    marks.add(2, Mark.TURNED)
    assert (marks.take_news(Mark.CMYK), marks.take_news(Mark.TURNED)) == ([1], [2])


def test_marks_of_another_process_are_seen():
    marks = ImageFlags(4)
    context = torch.multiprocessing.get_context("fork")
    process = context.Process(target=marks.add, args=(3, Mark.UNREADABLE))
    process.start()
    process.join()
    assert marks.images(Mark.UNREADABLE) == [3]


def test_ranks_join_their_marks():
    def work():
        marks = ImageFlags(4)
        marks.add(rank(), Mark.CMYK)
        marks.add(3, (Mark.TURNED, Mark.UNREADABLE)[rank()])
        marks.join_ranks()
        return [marks.images(mark) for mark in Mark]

    assert on_ranks(2, work) == [[[3], [], [3], [0, 1], []]] * 2
