"""Adversarial training of image classifiers as fast as the GPU allows."""

__version__ = "0.1.0"
