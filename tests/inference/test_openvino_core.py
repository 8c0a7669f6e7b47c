"""Engines of OpenVINO share one core, so that signals can be handled after they are deleted."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest

from src.inference.exported_engines import OpenVinoEngine
from src.inference.openvino_core import openvino_core
from src.inference.quantizers import quantize_for_openvino
from tests.fixtures.calibration_inputs import calibration_inputs
from tests.fixtures.processes import run_fresh

pytest.importorskip(
    "openvino", reason="openvino is not installed (tools/requirements.txt)"
)


def receive_signal() -> None:
    received = []
    signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    signal.raise_signal(signal.SIGUSR1)
    assert received == [signal.SIGUSR1]


def delete_engines_in_their_order(graph: str) -> None:
    first = OpenVinoEngine(graph)
    second = OpenVinoEngine(graph)
    del first
    del second
    receive_signal()


def quantize_while_an_engine_is_open(graph: str, folder: str) -> None:
    engine = OpenVinoEngine(graph)
    quantized = Path(folder) / "int8.xml"
    quantize_for_openvino(Path(graph), quantized, calibration_inputs(), [])
    other = OpenVinoEngine(quantized)
    del engine
    del other
    receive_signal()


def test_a_signal_is_received_after_several_engines(exported):
    ended = run_fresh(delete_engines_in_their_order, exported)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_a_signal_is_received_after_a_quantization(exported, tmp_path):
    pytest.importorskip("nncf")
    ended = run_fresh(quantize_while_an_engine_is_open, exported, tmp_path)
    assert ended.code == 0, ended.err


def test_a_process_has_one_core_and_a_forked_one_its_own():
    mine = id(openvino_core())
    assert id(openvino_core()) == mine
    parent = os.getpid()
    ours, theirs = get_context("fork").Pipe()

    def child() -> None:
        theirs.send((os.getpid(), id(openvino_core())))

    process = get_context("fork").Process(target=child)
    process.start()
    number, other = ours.recv() if ours.poll(60) else (parent, mine)
    process.join(60)
    assert number != parent
    assert other != mine
