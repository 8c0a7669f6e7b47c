"""D-FINE: detector, encoder, decoder, loss and post-processing. Importing this package registers them."""

from .dfine import DFINE
from .dfine_criterion import DFINECriterion
from .dfine_decoder import DFINETransformer
from .hybrid_encoder import HybridEncoder
from .lite_encoder import LiteEncoder
from .matcher import HungarianMatcher
from .postprocessor import DFINEPostProcessor

__all__ = [
    "DFINE",
    "DFINECriterion",
    "DFINEPostProcessor",
    "DFINETransformer",
    "HungarianMatcher",
    "HybridEncoder",
    "LiteEncoder",
]
