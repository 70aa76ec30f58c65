"""Presets: complete configurations by name, each with its claim, cost and evidence.

A preset of a paper follows the paper's text and its authors' code, and its claim says
where it differs. Its small twin, the preset whose name ends in "-quick", runs in
minutes on a CPU.
"""

import dataclasses

from zosam_jax import _check
from zosam_jax.runs.config import TrainConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Preset:
    """A preset.

    Attributes:
      config: The configuration. Flags on the command line override its fields.
      claim: What it trains, which paper it follows, and the result.
      cost: Steps or time, and the machine.
      evidence: Path of the run that shows the claim, or "not run".
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
    augment=("resized_crop", "flip"),
    checkpoint_every=1,
    workers=8,
)
# DeiT's augmentation after the crop.
_DEIT_AUGMENT = ("flip", "randaugment=9", "erasing=0.25", "mixup=0.8", "cutmix=1")
_DEIT = TrainConfig(
    dataset="imagenet2012",
    model="deit-tiny",
    model_options=("stochastic_depth=0.1",),
    method="svite",
    sparsity=0.5,
    budget="erk_fused",
    optimizer="adamw",
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    weight_decay=0.05,
    decay="kernels",
    warmup_epochs=5,
    label_smoothing=0.1,
    augment=("resized_crop", *_DEIT_AUGMENT),
    ema=0.99996,
    batch_size=1024,
    epochs=600,
    checkpoint_every=1,
    workers=8,
)
# What the small twins of the presets of papers have in common.
_TWIN = {"dataset": "cifar10", "checkpoint_every": 1, "workers": 0}


def _twin(config: TrainConfig, **fields: object) -> TrainConfig:
    """Returns the configuration of a small twin on CIFAR-10."""
    return dataclasses.replace(config, **{**_TWIN, **fields})


PRESETS = {
    "digits": Preset(
        config=TrainConfig(),
        claim="ResNet-20 at 90 % sparsity (RigL, ERK) with ZO-SAM on the 8x8 digits "
        "of scikit-learn: at least 96 % test accuracy.",
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
        claim="ResNet-20 at half the width and 90 % sparsity on CIFAR-10, the small "
        "twin of cifar-resnet32. It shows training on photographs without an "
        "accelerator; its accuracy is not comparable with papers.",
        cost="3,120 steps: 12 minutes on 2 CPU cores.",
        evidence="benchmarks/results/cifar10-quick",
    ),
    "cifar-resnet32": Preset(
        config=_CIFAR,
        claim="ResNet-32 at twice the width (1.86 M parameters) and 90 % sparsity on "
        "CIFAR-10, RigL (ERK) with ZO-SAM, with the schedule of MEST "
        "(arXiv:2110.14032) and S2-SAM: 160 epochs at batch size 64, cosine from 0.1 "
        "to 4e-8, momentum 0.9. Weight decay 5e-4, as S2-SAM has it with a "
        "sharpness-aware gradient; without one it is 1e-4, so add --weight-decay 1e-4 "
        "to --gradient backprop. For CIFAR-100, add --dataset cifar100. Nothing is "
        "selected on test images.",
        cost="124,960 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-resnet32-grasp": Preset(
        config=dataclasses.replace(
            _GRASP, method="grasp", weight_decay=1e-4, score_images=10
        ),
        claim="The network of cifar-resnet32 with GraSP's masks and schedule "
        "(arXiv:2002.07376): batch size 128, learning rate x 0.1 at epochs 80 and 120 "
        "of 160, weight decay 1e-4. Masks are chosen by ten images of each class, as "
        "in the authors' code. That crops and flips these images at random, and takes "
        "two batches of five classes each; here they are clean and one batch.",
        cost="62,400 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-vgg19": Preset(
        config=dataclasses.replace(_GRASP, model="vgg19", width=1.0),
        claim="VGG-19 with batch normalization (20 M parameters) at 90 % sparsity on "
        "CIFAR-10, RigL (ERK) with ZO-SAM, with GraSP's schedule (arXiv:2002.07376) "
        "and weight decay 5e-4.",
        cost="62,400 steps; for an accelerator.",
        evidence="not run",
    ),
    "cifar-vgg19-quick": Preset(
        config=_twin(_GRASP, model="vgg19", width=0.125, epochs=2, update_interval=50),
        claim="The small twin of cifar-vgg19: an eighth of the width, 2 epochs.",
        cost="780 steps: 4 minutes on a CPU core.",
        evidence="benchmarks/results/cifar-vgg19-quick",
    ),
    "imagenet-resnet50": Preset(
        config=_RIGL,
        claim="ResNet-50 at 80 % sparsity on ImageNet, trained as in RigL "
        "(arXiv:1911.11134) but with ZO-SAM: batch size 4096, Nesterov momentum, "
        "learning rate 1.6, x 0.1 at epochs 30, 70 and 90, 5 epochs of warm-up, label "
        "smoothing 0.1, weight decay 1e-4 on kernels, residual branches that start at "
        "zero, a uniform sparsity distribution with a dense stem, mask updates every "
        "100 steps until step 25,000 of about 32,000.",
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
        claim="The small twin of imagenet-resnet50: ResNet-18 at a quarter of the "
        "width on CIFAR-10, 2 epochs, with the learning rate scaled by the batch size "
        "and weight decay on all parameters.",
        cost="780 steps: 9 minutes on a CPU core.",
        evidence="benchmarks/results/imagenet-resnet50-quick",
    ),
    "imagenet-deit-tiny": Preset(
        config=dataclasses.replace(_DEIT, update_interval=20_000 // 2),
        claim="DeiT-Tiny at 50 % sparsity on ImageNet, trained as in DeiT "
        "(arXiv:2012.12877) with SViTE's masks (arXiv:2106.04533) and ZO-SAM: AdamW, "
        "learning rate 5e-4 per 512 images down to 1e-5, weight decay 0.05 on kernels, "
        "5 epochs of warm-up, Mixup 0.8 or CutMix 1, RandAugment 9, random erasing "
        "0.25, label smoothing 0.1, stochastic depth 0.1, weight averaging with decay "
        "0.99996, 600 epochs. SViTE updates its masks every 20,000 steps at batch size "
        "512; here it is every 10,000 steps at 1,024. ERK takes query, key and value "
        "for one kernel, as SViTE does. Differences: no repeated augmentation, and "
        "bilinear instead of bicubic resizing.",
        cost="750,600 steps of 1,024 images; for several accelerators.",
        evidence="not run",
    ),
    "imagenet-deit-small": Preset(
        config=dataclasses.replace(
            _DEIT, model="deit-small", sparsity=0.7, update_interval=15_000 // 2
        ),
        claim="DeiT-Small at 70 % sparsity, otherwise as imagenet-deit-tiny. SViTE "
        "updates its masks every 15,000 steps at batch size 512; here it is every "
        "7,500 steps at 1,024.",
        cost="750,600 steps of 1,024 images; for several accelerators.",
        evidence="not run",
    ),
    "imagenet-deit-quick": Preset(
        config=_twin(
            _DEIT,
            model="vit",
            width=0.34,
            budget="auto",
            batch_size=128,
            learning_rate=5e-4,
            warmup_epochs=0.2,
            ema=0.99,
            epochs=2,
            update_interval=50,
            augment=("crop=4", *_DEIT_AUGMENT),
        ),
        claim="The small twin of imagenet-deit-tiny: a small ViT on CIFAR-10, 2 "
        "epochs. ERK takes query, key and value for three kernels, as in the run that "
        "was measured.",
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
        claim="A small decoder-only transformer at 80 % sparsity (RigL, ERK) with "
        "ZO-SAM, trained on the bytes of Python's own documentation. Whether ZO-SAM "
        "helps beyond vision is an open question; this preset is a start.",
        cost="408 steps: 5 minutes on a CPU core.",
        evidence="benchmarks/results/tinylm",
    ),
}


def preset(name: str) -> Preset:
    """Returns a preset by name.

    >>> preset("cifar-resnet32").config.epochs
    160

    Raises:
      ValueError: There is no such preset; the message names the nearest.
    """
    _check.one_of("preset", name, PRESETS)
    return PRESETS[name]
