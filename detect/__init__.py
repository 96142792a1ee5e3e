"""A compact trainer for Cascade Mask R-CNN, Faster R-CNN and their family, from short YAML recipes.

Each command of ``detect`` is a function here (``docs/api.md``): ``train``, ``evaluate``, ``predict``, ``export`` and so
on. ``load`` gives a model that finds objects in a program or notebook. Parts of one's own are registered with
``MODELS.register``; ``weighted_loss`` makes a loss of a function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detect.analysis.analyzing import Analysis, analyze
    from detect.analysis.comparing import Comparison, compare
    from detect.analysis.writing import write_analysis
    from detect.config import Config, build_augment, build_model, load_config
    from detect.conversion import convert_checkpoint
    from detect.evaluation import evaluate
    from detect.exporting.export import Exported, export
    from detect.looking.anchor_pictures import draw_anchors
    from detect.looking.listing import describe_part, list_parts
    from detect.looking.summary import summarize
    from detect.metrics.evaluating import evaluate_results
    from detect.metrics.results import Results
    from detect.metrics.scores import Options, Scores
    from detect.models.detections import Detections
    from detect.models.losses import weighted_loss
    from detect.predicting.predictions import Predictions
    from detect.predicting.predictor import Predictor, load
    from detect.prediction import predict
    from detect.registry import MODELS
    from detect.reporting.report import report
    from detect.running.control import TrainingInterruptedError
    from detect.trained import Trained, load_trained
    from detect.training import train

# Imported when first asked for, so that the command line answers without PyTorch.
_HOMES = {
    "MODELS": "detect.registry",
    "Analysis": "detect.analysis.analyzing",
    "Comparison": "detect.analysis.comparing",
    "Config": "detect.config",
    "Detections": "detect.models.detections",
    "Exported": "detect.exporting.export",
    "Options": "detect.metrics.scores",
    "Predictions": "detect.predicting.predictions",
    "Predictor": "detect.predicting.predictor",
    "Results": "detect.metrics.results",
    "Scores": "detect.metrics.scores",
    "Trained": "detect.trained",
    "TrainingInterruptedError": "detect.running.control",
    "analyze": "detect.analysis.analyzing",
    "build_augment": "detect.config",
    "build_model": "detect.config",
    "compare": "detect.analysis.comparing",
    "convert_checkpoint": "detect.conversion",
    "describe_part": "detect.looking.listing",
    "draw_anchors": "detect.looking.anchor_pictures",
    "evaluate": "detect.evaluation",
    "evaluate_results": "detect.metrics.evaluating",
    "export": "detect.exporting.export",
    "list_parts": "detect.looking.listing",
    "load": "detect.predicting.predictor",
    "load_config": "detect.config",
    "load_trained": "detect.trained",
    "predict": "detect.prediction",
    "report": "detect.reporting.report",
    "summarize": "detect.looking.summary",
    "train": "detect.training",
    "weighted_loss": "detect.models.losses",
    "write_analysis": "detect.analysis.writing",
}

__all__ = [
    "MODELS",
    "Analysis",
    "Comparison",
    "Config",
    "Detections",
    "Exported",
    "Options",
    "Predictions",
    "Predictor",
    "Results",
    "Scores",
    "Trained",
    "TrainingInterruptedError",
    "analyze",
    "build_augment",
    "build_model",
    "compare",
    "convert_checkpoint",
    "describe_part",
    "draw_anchors",
    "evaluate",
    "evaluate_results",
    "export",
    "list_parts",
    "load",
    "load_config",
    "load_trained",
    "predict",
    "report",
    "summarize",
    "train",
    "weighted_loss",
    "write_analysis",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
