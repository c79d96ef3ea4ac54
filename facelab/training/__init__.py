"""Recipes, the loop that trains them, and what it leaves behind."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "recipes": ["load_recipes", "resolve"],
        "loop": ["train"],
        "models": ["load_model", "restore"],
        "zoo": ["find_models", "model_folder"],
    },
)
