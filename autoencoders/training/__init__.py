"""Training a model and writing its folder."""
