"""The kernels, a line each: the name, by which they are compiled ahead of time and measured, and the package."""

KERNELS = {
    "dual_batch_norm": "fastarat_kernels.dual_batch_norm",
    "pgd_step": "fastarat_kernels.pgd_step",
    "augment": "fastarat_kernels.augment",
    "pooled_features": "fastarat_kernels.pooled_features",
}
