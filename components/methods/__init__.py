"""All methods; only supervised and clip use labels or captions. To add one, write its file and add its line here."""

from components.methods.barlowtwins import BarlowTwins, BarlowTwinsConfig
from components.methods.byol import BYOL, BYOLConfig
from components.methods.clip import CLIP, CLIPConfig
from components.methods.contextprediction import ContextPrediction, ContextPredictionConfig
from components.methods.diet import DIET, DIETConfig
from components.methods.dino import DINO, DINOConfig
from components.methods.dinov2 import DINOv2, DINOv2Config
from components.methods.distill import Distill, DistillConfig
from components.methods.ibot import IBOT, IBOTConfig
from components.methods.ijepa import IJEPA, IJEPAConfig
from components.methods.jigsaw import Jigsaw, JigsawConfig
from components.methods.lejepa import LeJEPA, LeJEPAConfig
from components.methods.mae import MAE, MAEConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.mocov3 import MoCoV3, MoCoV3Config
from components.methods.published import AsPublished, AsPublishedConfig
from components.methods.rotation import Rotation, RotationConfig
from components.methods.simclr import SimCLR, SimCLRConfig
from components.methods.simsiam import SimSiam, SimSiamConfig
from components.methods.supervised import Supervised, SupervisedConfig
from components.methods.swav import SwAV, SwAVConfig
from components.methods.vicreg import VICReg, VICRegConfig

METHODS: dict[str, Recipe] = {
    "contextprediction": Recipe(ContextPrediction, ContextPredictionConfig),
    "jigsaw": Recipe(Jigsaw, JigsawConfig),
    "rotation": Recipe(Rotation, RotationConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "dino": Recipe(DINO, DINOConfig),
    "mocov3": Recipe(MoCoV3, MoCoV3Config),
    "byol": Recipe(BYOL, BYOLConfig),
    "simsiam": Recipe(SimSiam, SimSiamConfig),
    "swav": Recipe(SwAV, SwAVConfig),
    "barlowtwins": Recipe(BarlowTwins, BarlowTwinsConfig),
    "vicreg": Recipe(VICReg, VICRegConfig),
    "mae": Recipe(MAE, MAEConfig),
    "ibot": Recipe(IBOT, IBOTConfig),
    "dinov2": Recipe(DINOv2, DINOv2Config),
    "ijepa": Recipe(IJEPA, IJEPAConfig),
    "lejepa": Recipe(LeJEPA, LeJEPAConfig),
    "diet": Recipe(DIET, DIETConfig),
    "distill": Recipe(Distill, DistillConfig),
    "clip": Recipe(CLIP, CLIPConfig),
    "supervised": Recipe(Supervised, SupervisedConfig),
    "published": Recipe(AsPublished, AsPublishedConfig),
}

TRAINED = tuple(name for name, recipe in METHODS.items() if recipe.method.trains)

__all__ = ["METHODS", "TRAINED", "Method", "MethodConfig", "Recipe"]
