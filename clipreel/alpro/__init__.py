"""ALPRO (arXiv 2112.09583): its own video, text and fusion encoders, prompter, losses, checkpoints, retriever."""
