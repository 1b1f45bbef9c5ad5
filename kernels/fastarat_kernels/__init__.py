"""The numerical kernels of fastarat, each with its PyTorch twin; knows nothing of the trainer."""
