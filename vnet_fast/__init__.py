"""V-Net for volumetric segmentation."""

from pathlib import Path

__version__ = "0.1.0"

# in a checkout the kernels lie beside this package, in kernels/; in an installed package inside it
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

from vnet_fast.nn.dice_ce import DiceCELoss  # noqa: E402
from vnet_fast.nn.dice_focal import DiceFocalLoss  # noqa: E402
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy  # noqa: E402
from vnet_fast.nn.overlap_losses import GeneralizedDiceLoss, TverskyLoss  # noqa: E402
from vnet_fast.nn.vnet import VNet  # noqa: E402

__all__ = [
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "GeneralizedDiceLoss",
    "TverskyLoss",
    "VNet",
    "WeightedCrossEntropy",
    "__version__",
]
