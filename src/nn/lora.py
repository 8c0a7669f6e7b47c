"""Low-rank adaptation (LoRA, Hu et al., 2021): train small factors beside the frozen matrices of a ViT.

This module is separate from the backbone because it depends only on the names of linear layers in timm's ViT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..core.contracts import LORA_FACTORS
from ..core.errors import ConfigError
from ..ops import onednn

if TYPE_CHECKING:  # timm takes long to import
    from timm.models.eva import EvaAttention, EvaBlock

_LAYERS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    "fc2": ("mlp.fc2",),
}
"""Layers of a block for each target, for fused and separate projections and for plain and gated
feed-forward."""

_GROUPS = {"attention": ("qkv", "proj"), "mlp": ("fc1", "fc2")}
"""Targets that stand for several others."""


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trained low-rank update: W x + b + alpha / rank * B A x (equation 3).

    `weight` and `bias` keep their names, so weights of a plain model can be loaded; the update is then zero.
    A is `lora_down` `[rank, in]`, initialized as in the paper's code, and B is `lora_up` `[out, rank]`,
    initialized with zeros.

    Example:
        >>> layer = LoRALinear.from_linear(nn.Linear(8, 4), rank=2, alpha=2.0)
        >>> [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
        ['lora_down', 'lora_up']
        >>> layer.lora_down.shape, layer.lora_up.shape
        (torch.Size([2, 8]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int,
        alpha: float,
        **factory: Any,
    ) -> None:
        """Build a layer whose update is zero.

        Args:
            in_features: length of an input.
            out_features: length of an output.
            bias: whether the frozen layer has a bias.
            rank: rank of the update, from 1 to the smaller of both lengths.
            alpha: numerator of the scale alpha / rank of the update.
            factory: device and dtype.
        """
        super().__init__(in_features, out_features, bias, **factory)
        self.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_down = nn.Parameter(torch.empty(rank, in_features, **factory))
        self.lora_up = nn.Parameter(torch.zeros(out_features, rank, **factory))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, rank: int, alpha: float
    ) -> LoRALinear:
        """Return a layer that shares the weights of `linear` and freezes them."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            rank=rank,
            alpha=alpha,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        layer.weight = linear.requires_grad_(False).weight
        layer.bias = linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        change = onednn.linear(input, self.lora_down)
        change = onednn.linear(change, self.lora_up)
        frozen = onednn.linear(input, self.weight, self.bias)
        return torch.add(frozen, change, alpha=self.scale)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + alpha / rank * B A, `[out, in]`."""
        return torch.addmm(
            self.weight, self.lora_up, self.lora_down, alpha=self.scale
        )

    def convert_to_deploy(self) -> None:
        """Convert to a plain linear layer with the merged weight, in place."""
        self.weight.data = self.merged_weight()
        del self.lora_down, self.lora_up, self.scale
        self.__class__ = nn.Linear  # type: ignore[assignment]  # intended: only a plain layer remains

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        """Load a state dict; if it has no factors, as for a plain layer, set the update to zero."""
        factors = {
            prefix + name: getattr(self, name).detach() for name in LORA_FACTORS
        }
        is_plain = factors.keys().isdisjoint(state_dict)
        if is_plain and prefix + "weight" in state_dict:
            factors[prefix + "lora_up"] = torch.zeros_like(self.lora_up)
            state_dict = {**state_dict, **factors}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def add_lora(
    vit: nn.Module, rank: int, alpha: float | None, targets: Sequence[str]
) -> None:
    """Replace linear layers in every block of timm's ViT by `LoRALinear`.

    Args:
        vit: timm's Eva, changed in place.
        rank: rank of each update.
        alpha: numerator of the scale alpha / rank; None uses `rank`.
        targets: "attention" (qkv, proj), "mlp" (fc1, fc2; both halves of a gated fc1), or any of these four
            names.

    Raises:
        ConfigError: if a target is not known, or rank or alpha is out of range.
    """
    layers = _layers_of(vit, targets)
    widths = []
    for _, _, linear in layers:
        widths += [linear.in_features, linear.out_features]
    largest = min(widths)
    if not 1 <= rank <= largest:
        raise ConfigError(
            f"lora_rank is {rank}, expected 0 for no LoRA, or 1 to {largest}, the smallest width of the "
            f"layers {', '.join(targets)}"
        )
    alpha = rank if alpha is None else alpha
    if not alpha > 0:
        raise ConfigError(f"lora_alpha is {alpha}, expected more than 0")
    for owner, name, linear in layers:
        setattr(owner, name, LoRALinear.from_linear(linear, rank, alpha))
    for block in _blocks_of(vit):
        # If there are query and value biases, timm reads qkv.weight and does not call the layer, unless the
        # biases are added separately.
        attention = cast("EvaAttention", block.attn)
        if isinstance(attention.qkv, LoRALinear):
            attention.qkv_bias_separate = True


def _blocks_of(vit: nn.Module) -> Iterable[EvaBlock]:
    """Return the blocks of timm's ViT with their type."""
    return cast("Iterable[EvaBlock]", vit.blocks)


def _layers_of(
    vit: nn.Module, targets: Sequence[str]
) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return (owner, attribute, layer) for the targets in all blocks; each layer occurs once."""
    unknown = [
        target for target in targets if target not in (*_GROUPS, *_LAYERS)
    ]
    if unknown or not targets:
        raise ConfigError(
            f"lora_targets is {list(targets)}, expected some of {', '.join([*_GROUPS, *_LAYERS])}"
        )
    chosen: set[str] = set()
    for target in targets:
        chosen.update(_GROUPS.get(target, (target,)))
    paths: list[str] = []
    for name, of_target in _LAYERS.items():
        if name in chosen:
            paths += of_target
    found = []
    for block in _blocks_of(vit):
        for path in paths:
            part, _, name = path.partition(".")
            owner = getattr(block, part)
            linear = getattr(owner, name, None)
            if isinstance(linear, nn.Linear):
                found.append((owner, name, linear))
    return found
