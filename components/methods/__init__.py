"""Every way we know to learn without labels. To add one: write its file, add its line."""

from components.methods.dino import DINO, DINOConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.simclr import SimCLR, SimCLRConfig

METHODS: dict[str, Recipe] = {
    "dino": Recipe(DINO, DINOConfig),
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
}

__all__ = ["METHODS", "Method", "MethodConfig", "Recipe"]
