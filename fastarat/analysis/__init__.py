"""What a trained run looks like inside: its losses' conflict, its batch statistics, its features, its loss surface.

One measure a file; `analyze` takes them all, for every state that the run has kept.
"""

from fastarat.analysis.analyze import Analysis, analyze, whole_analysis

__all__ = ["Analysis", "analyze", "whole_analysis"]
