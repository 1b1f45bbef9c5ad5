"""The numerical kernels of fastarat, each with its PyTorch reference; knows nothing of the trainer."""
