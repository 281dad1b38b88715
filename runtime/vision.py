"""Makes `import torchvision` work where its compiled library cannot load, such as a CUDA build beside a CPU torch.

Without its operators torchvision fails at import, although its Python side (transforms, data sets) needs none of them.
Call `ensure_torchvision()` before importing torchvision, timm or continuum; nothing else in the project knows of this.
"""

import importlib.machinery
import importlib.util
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

# Operators that torchvision's Python code refers to by name while it is imported.
_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# The schemas live as long as this object does.
_library: torch.library.Library | None = None


def ensure_torchvision() -> None:
    """Define the schemas of torchvision's operators, once, and only where the real ones are absent.

    Does not import torchvision. A build whose own library loads is left as it is. May be called any number of times.
    """
    global _library
    if _library is not None or _has_operators():
        return
    _load_real_library()
    if _has_operators():
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}{_SIGNATURE}")
    _library = library


def _has_operators() -> bool:
    return hasattr(torch.ops.torchvision, _OPERATORS[0])


def _load_real_library() -> None:
    """Load torchvision's own library as its import would: only that tells whether the operators exist."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return  # not installed: whoever imports it says so
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    finder = importlib.machinery.FileFinder(
        str(Path(spec.origin).parent), (importlib.machinery.ExtensionFileLoader, suffixes)
    )
    found = finder.find_spec("_C")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(found.origin)
    except OSError as error:
        logger.debug("torchvision runs without its compiled operators: %s", error)
