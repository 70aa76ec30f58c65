"""Models as Flax Linen modules: ResNets, VGG, vision transformers, MLP, language model.

    model = create("resnet32", num_classes=10)
    params, model_state = initialize(model, jax.random.key(0), (32, 32, 3))
    logits = model.apply({"params": params, **model_state}, images, train=False)

A model for which `draws(model)` is true needs a key in training, the same one in all
passes of a step: `model.apply(..., train=True, rngs={"dropout": key})`.

`print(describe())` lists all models, `zosam_jax.models.table` defines them. The rest of
the library works on any pytree of parameters and does not know these models.
"""

from zosam_jax.models import layers as layers
from zosam_jax.models import mlp as mlp
from zosam_jax.models import resnet as resnet
from zosam_jax.models import table as table
from zosam_jax.models import tinylm as tinylm
from zosam_jax.models import torch_names as torch_names
from zosam_jax.models import transformer as transformer
from zosam_jax.models import vgg as vgg
from zosam_jax.models import vit as vit
from zosam_jax.models import wide_resnet as wide_resnet
from zosam_jax.models.batch_statistics import (
    reestimate_batch_stats as reestimate_batch_stats,
)
from zosam_jax.models.depths import depths as depths
from zosam_jax.models.table import create as create
from zosam_jax.models.table import dense_paths as dense_paths
from zosam_jax.models.table import describe as describe
from zosam_jax.models.table import kind as kind
from zosam_jax.models.table import names as names
from zosam_jax.models.table import options as options
from zosam_jax.models.table import unit_groups as unit_groups
from zosam_jax.models.variables import draws as draws
from zosam_jax.models.variables import initialize as initialize
from zosam_jax.models.variables import intermediates as intermediates
