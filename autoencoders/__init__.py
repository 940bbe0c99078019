"""The autoencoder suite: what its scripts share."""
