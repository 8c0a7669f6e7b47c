"""`dfine export` refuses flags that would have no effect, before it opens the checkpoint."""

import pytest

from src.cli import export


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "photos"], "--images is only used with --check"),
        (["--count", "4"], "--count is only used with --check"),
        (["--calibration", "photos"], "--calibration is only used with --int8"),
        (["--max-ap-loss", "0.1"], "--max-ap-loss is only used with --int8"),
        (["--int8", "--check"], "--check is not used with --int8"),
        (["--int8", "--count", "4"], "--count is not used with --int8"),
        (["--int8", "--sampling", "gather"], "--sampling is not used with"),
    ],
)
def test_a_flag_without_effect_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(["none.pth", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
