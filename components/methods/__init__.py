"""Every way we know to learn without labels, and one with them. To add one: write its file, add its line."""

from components.methods.barlowtwins import BarlowTwins, BarlowTwinsConfig
from components.methods.byol import BYOL, BYOLConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.mocov3 import MoCoV3, MoCoV3Config
from components.methods.simclr import SimCLR, SimCLRConfig
from components.methods.simsiam import SimSiam, SimSiamConfig
from components.methods.supervised import Supervised, SupervisedConfig
from components.methods.vicreg import VICReg, VICRegConfig

METHODS: dict[str, Recipe] = {
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
    "mocov3": Recipe(MoCoV3, MoCoV3Config),
    "byol": Recipe(BYOL, BYOLConfig),
    "simsiam": Recipe(SimSiam, SimSiamConfig),
    "barlowtwins": Recipe(BarlowTwins, BarlowTwinsConfig),
    "vicreg": Recipe(VICReg, VICRegConfig),
    "supervised": Recipe(Supervised, SupervisedConfig),
}

__all__ = ["METHODS", "Method", "MethodConfig", "Recipe"]
