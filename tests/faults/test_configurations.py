"""Configurations that are misspelt, malformed, hostile or cannot work: rows F68 to F73 and F75."""

import logging
import sys

import pytest

import train
from src.core.yaml_text import MAX_BYTES
from tests.fixtures.commands import write_tiny_config


@pytest.fixture
def refused(monkeypatch, capsys, tiny_data, tmp_path):
    """Return a function that runs train.py on a config with appended text, and returns its last line."""
    logger = logging.getLogger("dfine")
    before = logger.handlers[:], logger.propagate, logger.level
    config = write_tiny_config(tmp_path, tiny_data)

    def run(text: str = "", *arguments: str, code: int = 2) -> str:
        (tmp_path / "changed.yml").write_text(
            f"__include__: [{config}]\n{text}"
        )
        monkeypatch.setattr(
            sys,
            "argv",
            ["train.py", "-c", str(tmp_path / "changed.yml"), *arguments],
        )
        with pytest.raises(SystemExit) as end:
            train.main()
        said = [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.startswith("error[")
        ]
        assert end.value.code == code, said
        assert len(said) == 1
        return said[0]

    yield run
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "epoches: 3\n",
            "unknown key 'epoches'|did you mean 'epochs'?|changed.yml:2",
        ),
        (
            "DFINETransformer:\n  num_layer: 3\n",
            "unknown key 'DFINETransformer.num_layer'|did you mean 'num_layers'?|changed.yml:3",
        ),
        (
            "train_dataloader: {dataset: {transforms: {ops: [{type: Rezise}]}}}\n",
            "Rezise|changed.yml:2",
        ),
    ],
)
def test_f68_an_unknown_key_is_named_with_its_line_and_the_nearest(
    refused, text, expected
):
    message = refused(text)
    assert all(part in message for part in expected.split("|")), message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: abc\n", "epochs is 'abc', expected an integer"),
        ("epochs: -3\n", "epochs is -3"),
        ("epochs: 0\n", "epochs is 0"),
        ("clip_max_norm: .nan\n", "clip_max_norm is not a finite number"),
        ("optimizer: {lr: fast}\n", "optimizer.lr is 'fast'"),
        ("optimizer: {lr: '1e-4'}\n", "optimizer.lr is '1e-4'"),
    ],
)
def test_f69_a_wrong_value_is_named_with_what_was_expected(
    refused, text, expected
):
    assert expected in refused(text)


def test_f69_a_number_with_an_exponent_is_a_number(refused):
    assert "epochs is 0" in refused("optimizer: {lr: 1e-4}\nepochs: 0\n")


def test_f70_a_circle_of_includes_shows_the_chain(refused, tmp_path):
    a, b = tmp_path / "a.yml", tmp_path / "b.yml"
    a.write_text("__include__: [b.yml]\n")
    b.write_text("__include__: [a.yml]\n")
    assert f"{a} -> {b} -> {a}" in refused("", "-c", str(a))
    a.write_text("__include__: [a.yml]\n")
    assert f"{a} -> {a}" in refused("", "-c", str(a))
    a.write_text("__include__: [none.yml]\n")
    assert f"not found: {a} -> {tmp_path / 'none.yml'}" in refused(
        "", "-c", str(a)
    )
    a.write_text("__include__: {b.yml: 1}\n")
    assert "__include__ must be a list of file names" in refused(
        "", "-c", str(a)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "epochs: 3\nepochs: 4\n",
            "changed.yml:3 sets epochs again; line 2 sets it already",
        ),
        (
            "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(
                f"{n}: &{n} [{', '.join([f'*{m}'] * 10)}]\n"
                for m, n in zip("abcdef", "bcdefg")
            ),
            "aliases",
        ),
        ("#" * MAX_BYTES, f"a configuration may have at most {MAX_BYTES}"),
        ("optimizer:\n\tlr: 1\n", "changed.yml:3 cannot be read as YAML"),
        ("optimizer: [1\n", "cannot be read as YAML"),
    ],
    ids=["duplicate", "alias bomb", "large", "tab", "open bracket"],
)
def test_f71_malformed_or_exploding_yaml_is_refused_with_its_place(
    refused, text, expected
):
    assert expected in refused(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train_dataloader: {total_batch_size: 64, drop_last: True}\n",
            "0 steps per epoch: 24 images cannot fill one batch of 64",
        ),
        ("epochs: -1\n", "epochs is -1, expected at least 1"),
        ("train_dataloader: {total_batch_size: 0}\n", "total_batch_size is 0"),
    ],
)
def test_f72_a_run_without_steps_is_refused(refused, text, expected):
    assert expected in refused(text)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/name:os.system",
    ],
)
def test_f73_code_in_yaml_does_not_run(refused, tmp_path, tag):
    canary = tmp_path / "canary"
    value = tag.format(canary)
    assert "could not determine a constructor" in refused(
        f"exp_name: {value}\n"
    )
    assert "could not determine a constructor" in refused(
        "", "-u", f"exp_name={value}"
    )
    assert not canary.exists()


@pytest.mark.parametrize("flag", ["-r", "-t"])
@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/best.pth",
        "https://example.com/best.pth",
        "s3://bucket/best.pth",
        "file:///etc/passwd",
    ],
)
def test_f75_an_address_in_place_of_weights_is_refused(refused, flag, address):
    assert f"{address} is a URL" in refused("", flag, address, code=4)


def test_f75_an_address_in_place_of_a_backbones_weights_is_refused(refused):
    message = refused(
        "DINOv3Backbone: {pretrained: True, checkpoint_path: 'https://example.com/vit.pth'}\n",
        code=4,
    )
    assert "https://example.com/vit.pth is a URL" in message
