"""The processor has a name, with and without the file that Linux keeps about it."""

from src.runtime import processor


def test_the_name_comes_from_the_description_of_the_first_core(monkeypatch):
    lines = ["processor : 0", "model name\t: A Processor 9000", "model name: B"]
    monkeypatch.setattr(processor, "system_lines", lambda path: lines)
    assert processor.processor_name() == "A Processor 9000"


def test_without_a_description_the_kind_of_machine_is_named(monkeypatch):
    monkeypatch.setattr(processor, "system_lines", lambda path: [])
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "riscv64")
    assert processor.processor_name() == "riscv64"
