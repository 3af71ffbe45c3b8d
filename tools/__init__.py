"""Scripts for those who work on fxquant."""
