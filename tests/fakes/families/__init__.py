"""Tiny random-weight models of public families, made of their own transformers classes."""
