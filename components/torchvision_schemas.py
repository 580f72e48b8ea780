"""A CPU build of torch beside torchvision's registry wheel, which is built for CUDA, lacks only two operator schemas.

torchvision's C++ extension cannot load there, so `import torchvision` stops at "operator torchvision::nms does not
exist". Nothing here calls these operators (they belong to detection), so their schemas are all that is missing.
"""

import importlib
import re
import sys
from types import ModuleType

import torch

SCHEMAS = {
    name: f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"  # torchvision/csrc/ops/nms.cpp
    for name in ("nms", "qnms")
}
_libraries: list[torch.library.Library] = []  # a library unregisters its schemas when it is collected


def import_torchvision() -> ModuleType:
    """Import torchvision; define the missing schemas only where that very error appears.

    Raises whatever else the import raises, and the same error again if it names an operator not in SCHEMAS.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
        if missing is None or missing[1] not in SCHEMAS or _libraries:
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS.values():
        library.define(schema)
    _libraries.append(library)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-imported
    return importlib.import_module("torchvision")
