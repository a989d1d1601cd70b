"""mcit: multimodal continual instruction tuning, stage after stage.

Layers, each importing only from those to its right:
``cli > train, export, report > methods, evals > engine, models, data, runs > core``
"""

__version__ = "0.1.0"
