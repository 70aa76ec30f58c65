"""Data sets, their preparation, and augmentation on the device.

    dataset = load("digits")
    images = augment.random_crop_flip(key, batch, dataset.crop_padding, dataset.flip)
    x = augment.normalize(images, dataset.mean, dataset.std)

`print(describe())` lists the data sets, `zosam_jax.data.table` defines them, and
`zosam_jax.data.sets` has a module for each.
"""

from zosam_jax.data import augment as augment
from zosam_jax.data import label_noise as label_noise
from zosam_jax.data.dataset import IGNORED as IGNORED
from zosam_jax.data.dataset import STATISTICS as STATISTICS
from zosam_jax.data.dataset import Dataset as Dataset
from zosam_jax.data.dataset import DatasetError as DatasetError
from zosam_jax.data.dataset import Task as Task
from zosam_jax.data.dataset import channel_statistics as channel_statistics
from zosam_jax.data.dataset import label_variance as label_variance
from zosam_jax.data.streaming import Streamed as Streamed
from zosam_jax.data.table import describe as describe
from zosam_jax.data.table import load as load
from zosam_jax.data.table import names as names
from zosam_jax.data.table import prepare as prepare
