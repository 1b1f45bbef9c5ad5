"""The PGD attack's own arithmetic: a step of ascent and projection, and a random start."""

from fastarat_kernels.pgd_step.op import pgd_step, start_point

__all__ = ["pgd_step", "start_point"]
