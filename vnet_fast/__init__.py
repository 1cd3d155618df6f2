"""V-Net for volumetric segmentation."""

from importlib import import_module as _import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# in a checkout the kernels lie beside this package, in kernels/; in an installed package inside it
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

from vnet_fast.errors import InputError, InputErrors  # noqa: E402
from vnet_fast.nn.dice_ce import DiceCELoss  # noqa: E402
from vnet_fast.nn.dice_focal import DiceFocalLoss  # noqa: E402
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy  # noqa: E402
from vnet_fast.nn.overlap_losses import GeneralizedDiceLoss, TverskyLoss  # noqa: E402
from vnet_fast.nn.vnet import VNet  # noqa: E402

if TYPE_CHECKING:
    from vnet_fast.interface.evaluation import evaluate_masks
    from vnet_fast.interface.segmenter import Segmenter
    from vnet_fast.interface.training import Trainer

__all__ = [
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "GeneralizedDiceLoss",
    "InputError",
    "InputErrors",
    "Segmenter",
    "Trainer",
    "TverskyLoss",
    "VNet",
    "WeightedCrossEntropy",
    "__version__",
    "evaluate_masks",
]

# imported when they are first asked for, because they take a second, and need SimpleITK
_LAZY = {"Segmenter": "segmenter", "Trainer": "training", "evaluate_masks": "evaluation"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"{__name__}.interface.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
