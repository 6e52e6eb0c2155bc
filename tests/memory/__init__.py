"""What the estimate of memory is held against: real tensors, counted passes, published figures.

The everyday tests take a quick part of it; `make memory` runs the whole.
"""
