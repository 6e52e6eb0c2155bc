"""LoRA Studio: a file of examples becomes a tested adapter, in the browser, on one consumer GPU."""

__version__ = "0.1.0"
