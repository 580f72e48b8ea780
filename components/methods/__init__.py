"""Every way we know to learn without labels. To add one: write its file, add its line."""

from components.methods.contextprediction import ContextPrediction, ContextPredictionConfig
from components.methods.dino import DINO, DINOConfig
from components.methods.dinov2 import DINOv2, DINOv2Config
from components.methods.ibot import IBOT, IBOTConfig
from components.methods.ijepa import IJEPA, IJEPAConfig
from components.methods.jigsaw import Jigsaw, JigsawConfig
from components.methods.lejepa import LeJEPA, LeJEPAConfig
from components.methods.mae import MAE, MAEConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.rotation import Rotation, RotationConfig
from components.methods.simclr import SimCLR, SimCLRConfig
from components.methods.swav import SwAV, SwAVConfig

METHODS: dict[str, Recipe] = {
    "dino": Recipe(DINO, DINOConfig),
    "ibot": Recipe(IBOT, IBOTConfig),
    "dinov2": Recipe(DINOv2, DINOv2Config),
    "swav": Recipe(SwAV, SwAVConfig),
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
    "mae": Recipe(MAE, MAEConfig),
    "ijepa": Recipe(IJEPA, IJEPAConfig),
    "lejepa": Recipe(LeJEPA, LeJEPAConfig),
    "contextprediction": Recipe(ContextPrediction, ContextPredictionConfig),
    "rotation": Recipe(Rotation, RotationConfig),
    "jigsaw": Recipe(Jigsaw, JigsawConfig),
}

__all__ = ["METHODS", "Method", "MethodConfig", "Recipe"]
