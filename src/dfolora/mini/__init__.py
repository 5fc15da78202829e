"""The embedded small world, its tasks, and two language models that know nothing else."""

from pathlib import Path

_MODELS = Path(__file__).parent / "models"
BUNDLED = {folder.name: folder for folder in sorted(_MODELS.glob("*/"))}
"""The pretrained models by name: folders as ``transformers`` writes them."""
