"""Extract from a training checkpoint what inference needs: the EMA weights and the meta data.

    python reference/convert_weight.py output/run/last.pth      # writes output/run/last_converted.pth

Checkpoints of D-FINE and last.pth are accepted. The result is {"model": weights}, with "meta" if the
checkpoint has it. LoRA factors are merged into the weights.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.common import parser_for, run


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("checkpoint_file", help="checkpoint with EMA weights")
    arguments = parser.parse_args()
    run(lambda: convert(arguments.checkpoint_file), arguments)


def convert(file: str) -> Path:
    """Write the converted file and return its path.

    Raises:
        CheckpointError: if the file is damaged or has no average.
    """
    from src.core.errors import CheckpointError
    from src.detection.weight_file import read_weights
    from src.runtime.log import logger
    from src.runtime.own_files import refuse_foreign
    from src.runtime.weight_files import read_tensor_file, write_tensor_file

    read = read_weights(file)
    content = read_tensor_file(file)
    ema = content.get("ema")
    if not (isinstance(ema, dict) and ema.get("module")):
        raise CheckpointError(
            f"{file} has no average of weights ('ema'), so there is nothing to convert; "
            "best.pth and released files are ready as they are"
        )
    path = read.path.with_stem(f"{read.path.stem}_converted")
    refuse_foreign([path], "move it away")
    weights = folded(read)
    write_tensor_file(
        path, {"model": weights, **({"meta": read.meta} if read.meta else {})}
    )
    logger.info(
        "%s: %d tensors, %.1f of %.1f MB",
        path,
        len(weights),
        path.stat().st_size / 1e6,
        read.path.stat().st_size / 1e6,
    )
    return path


def folded(read) -> dict:
    """Return the weights with LoRA's factors folded in, for which the model has to be built."""
    from src.core.errors import CheckpointError
    from src.detection.fitting import load_strictly
    from src.detection.lora_weights import is_lora_factor, merged_state_dict

    if not any(is_lora_factor(key) for key in read.weights):
        return read.weights
    if read.config_text is None:
        raise CheckpointError(
            f"{read.path} has LoRA factors but no configuration that says how they are scaled"
        )
    model = read.configuration().model
    load_strictly(model, read)
    return merged_state_dict(model)


if __name__ == "__main__":
    main()
