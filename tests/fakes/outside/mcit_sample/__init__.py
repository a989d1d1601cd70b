"""Plug-ins for mcit that live outside of it; one small one of every kind."""
