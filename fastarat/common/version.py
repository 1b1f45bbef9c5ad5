"""The version of fastarat."""

__version__ = "0.1.0"
