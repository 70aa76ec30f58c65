"""Recipes by name. Each says what it claims, what it costs and where that is shown.

Those of papers follow their text and their authors' code, and say where they differ.
A small twin, of the same row and another name, runs in minutes on a CPU.
"""

import dataclasses

from zosam_jax import _check
from zosam_jax.runs.config import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """A recipe.

    Attributes:
      config: The configuration; flags on the command line override its fields.
      claim: What it trains, whom it follows, and what that gives.
      cost: What it takes, and on which machine.
      evidence: The file that shows it, or "not run".
    """

    config: TrainConfig
    claim: str
    cost: str
    evidence: str


_CIFAR = TrainConfig(
    dataset="cifar10",
    model="resnet32",
    width=2.0,
    batch_size=64,
    epochs=160,
    final_learning_rate=4e-8,
)
_GRASP = dataclasses.replace(
    _CIFAR, batch_size=128, schedule="step", final_learning_rate=0.0
)
_RIGL = TrainConfig(
    dataset="imagenet2012",
    model="resnet50",
    model_options=("zero_init_residual=True",),
    sparsity=0.8,
    budget="uniform",
    dense=("stem/*",),
    update_interval=100,
    stop_fraction=0.78,
    learning_rate=1.6,
    nesterov=True,
    weight_decay=1e-4,
    decay="kernels",
    schedule="step",
    milestones=(30 / 102, 70 / 102, 90 / 102),
    warmup_epochs=5,
    label_smoothing=0.1,
    batch_size=4096,
    epochs=102,
    augment=("flip",),
    checkpoint_every=1,
    workers=8,
)
_DEIT = TrainConfig(
    dataset="imagenet2012",
    model="deit-tiny",
    model_options=("stochastic_depth=0.1",),
    method="svite",
    sparsity=0.5,
    optimizer="adamw",
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    weight_decay=0.05,
    decay="kernels",
    warmup_epochs=5,
    label_smoothing=0.1,
    augment=("flip", "randaugment=9", "erasing=0.25", "mixup=0.8", "cutmix=1"),
    ema=0.99996,
    batch_size=1024,
    epochs=600,
    checkpoint_every=1,
    workers=8,
)
_TWIN = {"dataset": "cifar10", "checkpoint_every": 1, "workers": 0}


def _twin(config: TrainConfig, **fields: object) -> TrainConfig:
    return dataclasses.replace(config, **{**_TWIN, **fields})


PRESETS = {
    "digits": Preset(
        config=TrainConfig(),
        claim="ResNet-20 with 90 % of its weights at zero (RigL, ERK) and ZO-SAM on "
        "scikit-learn's 8x8 digits: test accuracy of at least 96 %.",
        cost="Less than two minutes on 2 CPU cores, compilation included.",
        evidence="benchmarks/results/digits",
    ),
    "cifar10-quick": Preset(
        config=TrainConfig(
            dataset="cifar10",
            width=0.5,
            batch_size=128,
            epochs=8,
            warmup_epochs=1,
            checkpoint_every=1,
        ),
        claim="A half-wide ResNet-20 at 90 % sparsity on CIFAR-10, the small twin of "
        "cifar-resnet32: shows the path on real photographs without an accelerator; no "
        "figure to compare with papers.",
        cost="3,120 steps: 12 minutes on 2 CPU cores.",
        evidence="benchmarks/results/cifar10-quick",
    ),
    "cifar-resnet32": Preset(
        config=_CIFAR,
        claim="ResNet-32 of twice the width (1.86 M parameters) at 90 % sparsity on "
        "CIFAR-10 with the schedule of MEST (arXiv:2110.14032) and S2-SAM: 160 epochs "
        "at batch 64, cosine from 0.1 to 4e-8, momentum 0.9; weight decay 5e-4 as "
        "S2-SAM's with a sharpness-aware gradient (1e-4 without: say --weight-decay "
        "1e-4 for --gradient backprop). RigL with an ERK budget, and ZO-SAM. For "
        "CIFAR-100: --dataset cifar100. Test images choose nothing.",
        cost="124,960 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-resnet32-grasp": Preset(
        config=dataclasses.replace(_GRASP, method="grasp", weight_decay=1e-4),
        claim="The same network with GraSP's masks and schedule (arXiv:2002.07376): "
        "batch 128, x 0.1 at epochs 80 and 120 of 160, weight decay 1e-4.",
        cost="62,400 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-vgg19": Preset(
        config=dataclasses.replace(_GRASP, model="vgg19", width=1.0),
        claim="VGG-19 with batch normalisation (20 M parameters) at 90 % sparsity on "
        "CIFAR-10 with GraSP's schedule (arXiv:2002.07376) and weight decay 5e-4; RigL "
        "and ZO-SAM.",
        cost="62,400 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-vgg19-quick": Preset(
        config=_twin(_GRASP, model="vgg19", width=0.125, epochs=2, update_interval=50),
        claim="The same at an eighth of the width, for 2 epochs.",
        cost="780 steps: 4 minutes on a CPU core.",
        evidence="benchmarks/results/cifar-vgg19-quick",
    ),
    "imagenet-resnet50": Preset(
        config=_RIGL,
        claim="ResNet-50 at 80 % sparsity on ImageNet as RigL trains it "
        "(arXiv:1911.11134): batch 4096, Nesterov momentum, 1.6 x 0.1 at epochs 30, 70 "
        "and 90, 5 epochs of warm-up, label smoothing 0.1, weight decay 1e-4 of "
        "kernels, blocks that start as their shortcuts, uniform budget with a dense "
        "stem, changes every 100 steps until 25,000 of about 32,000; with ZO-SAM.",
        cost="31,824 steps of 4,096 images; for several accelerators.",
        evidence="not run",
    ),
    "imagenet-resnet50-quick": Preset(
        config=_twin(
            _RIGL,
            model="resnet18",
            width=0.25,
            model_options=("stem=cifar",),
            decay="all",
            milestones=(0.3, 0.7, 0.9),
            augment=None,
            batch_size=128,
            learning_rate=0.05,
            warmup_epochs=0.1,
            epochs=2,
            update_interval=50,
        ),
        claim="The same with a ResNet-18 of a quarter of the width on CIFAR-10, for 2 "
        "epochs: the learning rate scales with the batch, all parameters decay.",
        cost="780 steps: 9 minutes on a CPU core.",
        evidence="benchmarks/results/imagenet-resnet50-quick",
    ),
    "imagenet-deit-tiny": Preset(
        config=dataclasses.replace(_DEIT, update_interval=20_000 // 2),
        claim="DeiT-Tiny at 50 % sparsity on ImageNet with DeiT's recipe "
        "(arXiv:2012.12877) and SViTE's masks (arXiv:2106.04533): AdamW, 5e-4 a 512 "
        "images to 1e-5, decay 0.05 of kernels, 5 epochs of warm-up, Mixup 0.8 or "
        "CutMix 1, RandAugment 9, erasing 0.25, label smoothing 0.1, stochastic depth "
        "0.1, average of 0.99996, 600 epochs. SViTE changes every 20,000 steps at "
        "batch 512; here every 10,000 at 1,024. Without repeated augmentation; images "
        "are resized bilinearly, DeiT's bicubically.",
        cost="750,600 steps of 1,024 images; for several accelerators.",
        evidence="not run",
    ),
    "imagenet-deit-small": Preset(
        config=dataclasses.replace(
            _DEIT, model="deit-small", sparsity=0.7, update_interval=15_000 // 2
        ),
        claim="DeiT-Small at 70 % sparsity with the same recipe; SViTE changes every "
        "15,000 steps at batch 512, here every 7,500 at 1,024.",
        cost="750,600 steps of 1,024 images; for several accelerators.",
        evidence="not run",
    ),
    "imagenet-deit-quick": Preset(
        config=_twin(
            _DEIT,
            model="vit",
            width=0.34,
            batch_size=128,
            learning_rate=5e-4,
            warmup_epochs=0.2,
            ema=0.99,
            epochs=2,
            update_interval=50,
            augment=("crop=4", *(_DEIT.augment or ())),
        ),
        claim="The same with a small ViT on CIFAR-10, for 2 epochs.",
        cost="780 steps: 9 minutes on a CPU core.",
        evidence="benchmarks/results/imagenet-deit-quick",
    ),
    "tinylm": Preset(
        config=TrainConfig(
            dataset="pydoc",
            model="tinylm",
            sparsity=0.8,
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.1,
            decay="kernels",
            clip_norm=1.0,
            warmup_epochs=0.2,
            batch_size=32,
            epochs=4,
            update_interval=25,
            checkpoint_every=1,
        ),
        claim="A small decoder-only transformer at 80 % sparsity (RigL) with ZO-SAM, "
        "byte by byte on Python's own documentation: whether the method holds beyond "
        "vision is open; this is where to look.",
        cost="408 steps: 5 minutes on a CPU core.",
        evidence="benchmarks/results/tinylm",
    ),
}


def preset(name: str) -> Preset:
    """Returns the recipe of that name.

    >>> preset("cifar-resnet32").config.epochs
    160

    Raises:
      ValueError: The name is unknown; the message gives the nearest.
    """
    _check.one_of("preset", name, PRESETS)
    return PRESETS[name]
