"""Bytes of a stage before anything is loaded: weights, gradients, optimiser, activations, per engine and device."""
