"""Every way we know to learn without labels. To add one: write its file, add its line."""

from components.methods.contextprediction import ContextPrediction, ContextPredictionConfig
from components.methods.jigsaw import Jigsaw, JigsawConfig
from components.methods.method import Method, MethodConfig, Recipe
from components.methods.moco import MoCo, MoCoConfig, MoCoScriptConfig
from components.methods.rotation import Rotation, RotationConfig
from components.methods.simclr import SimCLR, SimCLRConfig

METHODS: dict[str, Recipe] = {
    "simclr": Recipe(SimCLR, SimCLRConfig),
    "moco": Recipe(MoCo, MoCoConfig),
    "mocoscriptstyle": Recipe(MoCo, MoCoScriptConfig),
    "contextprediction": Recipe(ContextPrediction, ContextPredictionConfig),
    "rotation": Recipe(Rotation, RotationConfig),
    "jigsaw": Recipe(Jigsaw, JigsawConfig),
}

__all__ = ["METHODS", "Method", "MethodConfig", "Recipe"]
