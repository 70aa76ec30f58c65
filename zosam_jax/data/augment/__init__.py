"""Augmentation on the device: pure functions of uint8 images, made to be jitted.

augmentation = make(("crop=4", "flip", "cutout=16"), num_classes=10, ...)
images, targets = jax.jit(augmentation)(key, images, labels)

Each operation but the padded crop comes in two halves, a draw `*_parameters(key, ...)`
and a function of the images and what was drawn: each is checked on its own.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax.data.augment.boxes import Box as Box
from zosam_jax.data.augment.crops import evaluation_crop as evaluation_crop
from zosam_jax.data.augment.crops import random_crop_flip as random_crop_flip
from zosam_jax.data.augment.crops import resized_crop as resized_crop
from zosam_jax.data.augment.crops import (
    resized_crop_parameters as resized_crop_parameters,
)
from zosam_jax.data.augment.mixing import CutMix as CutMix
from zosam_jax.data.augment.mixing import cutmix as cutmix
from zosam_jax.data.augment.mixing import cutmix_parameters as cutmix_parameters
from zosam_jax.data.augment.mixing import mix_labels as mix_labels
from zosam_jax.data.augment.mixing import mixup as mixup
from zosam_jax.data.augment.mixing import mixup_or_cutmix as mixup_or_cutmix
from zosam_jax.data.augment.mixing import mixup_parameters as mixup_parameters
from zosam_jax.data.augment.mixing import one_hot as one_hot
from zosam_jax.data.augment.mixing import smooth_labels as smooth_labels
from zosam_jax.data.augment.occlusion import Erasing as Erasing
from zosam_jax.data.augment.occlusion import cutout as cutout
from zosam_jax.data.augment.occlusion import cutout_parameters as cutout_parameters
from zosam_jax.data.augment.occlusion import erase as erase
from zosam_jax.data.augment.occlusion import erasing_parameters as erasing_parameters
from zosam_jax.data.augment.pipeline import Augmentation as Augmentation
from zosam_jax.data.augment.pipeline import make as make
from zosam_jax.data.augment.pipeline import names as names
from zosam_jax.data.augment.policy import RandAugment as RandAugment
from zosam_jax.data.augment.policy import randaugment as randaugment
from zosam_jax.data.augment.policy import (
    randaugment_parameters as randaugment_parameters,
)


def normalize(
    images: jax.Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns `(images / 255 - mean) / std`, computed in float32.

    Args:
      images: uint8 `[..., C]`, or float32 of the same scale.
      mean: Mean of each channel of `images / 255`.
      std: Standard deviation of each channel of `images / 255`.
      dtype: Type of the result.

    Returns:
      `dtype` `[..., C]`.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)
