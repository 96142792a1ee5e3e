"""Whether a model is being exported, as a graph has to do without some of Python."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing; PyTorch 2.6, which cannot tell, is not exported with."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
