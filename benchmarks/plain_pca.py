"""The PCA of MNIST as it is usually written: every image through ToTensor and a DataLoader, then the fit."""

import sys

import numpy as np
import torch
from sklearn.decomposition import PCA
from torchvision import datasets, transforms

images = datasets.MNIST(sys.argv[1], train=True, transform=transforms.ToTensor())
loader = torch.utils.data.DataLoader(images, batch_size=256)
pixels = torch.cat([x.view(len(x), -1) for x, _ in loader]).numpy()
pca = PCA().fit(pixels)
print(int(np.searchsorted(np.cumsum(pca.explained_variance_ratio_), 0.95)) + 1)
