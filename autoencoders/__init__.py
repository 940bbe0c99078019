"""The autoencoder suite: what its scripts share."""

import contextlib
import os
import sys

if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)):
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):  # such as that of a notebook that started us, which is not installed here
        matplotlib.rcParams["backend"] = backend
