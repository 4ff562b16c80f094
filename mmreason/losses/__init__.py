"""Pure tensor functions: they take tensors, return tensors, and know nothing but torch."""
