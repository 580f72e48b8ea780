"""How things are done. Knows nothing of Prefect or DVC: the same code trains on a bare GPU machine."""

from components.torchvision_schemas import import_torchvision

import_torchvision()  # first: transformers imports torchvision, and a CPU torch beside a CUDA torchvision breaks there
