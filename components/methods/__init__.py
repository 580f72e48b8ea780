"""Every way we know to learn without labels. To add one: write its file, add its line."""

from components.methods.ijepa import IJEPA, IJEPAConfig
from components.methods.lejepa import LeJEPA, LeJEPAConfig
from components.methods.mae import MAE, MAEConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.simclr import SimCLR, SimCLRConfig

METHODS: dict[str, Recipe] = {
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
    "mae": Recipe(MAE, MAEConfig),
    "ijepa": Recipe(IJEPA, IJEPAConfig),
    "lejepa": Recipe(LeJEPA, LeJEPAConfig),
}

__all__ = ["METHODS", "Method", "MethodConfig", "Recipe"]
