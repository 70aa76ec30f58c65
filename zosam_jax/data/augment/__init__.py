"""Augmentation on the device: pure functions of uint8 images that can be jitted.

    augmentation = compose(("crop=4", "flip", "cutout=16"), num_classes=10, ...)
    images, targets = jax.jit(augmentation)(key, images, labels)

Each operation but `random_crop_flip` has two parts: `*_parameters(key, ...)` draws the
random numbers, and a deterministic function applies them to the images.
"""

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
from zosam_jax.data.augment.pipeline import compose as compose
from zosam_jax.data.augment.pipeline import names as names
from zosam_jax.data.augment.pipeline import normalize as normalize
from zosam_jax.data.augment.rand_augment import RandAugment as RandAugment
from zosam_jax.data.augment.rand_augment import randaugment as randaugment
from zosam_jax.data.augment.rand_augment import (
    randaugment_parameters as randaugment_parameters,
)

make = compose
"""The earlier name of `compose`."""
