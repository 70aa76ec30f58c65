"""Small image sets: solid colours that tell the images apart, and real textures."""

import io

import numpy as np
from PIL import Image


def encode(array, kind="PNG", **options):
    """Returns an array as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def solid(number, height=20, width=20, kind="PNG"):
    """Returns an image whose colour says its number, wherever it is cut."""
    colour = np.array([number % 256, number // 256, 77], np.uint8)
    return encode(np.broadcast_to(colour, (height, width, 3)).copy(), kind)


def numbers(images):
    """Returns the numbers of solid images, uint8 `[N, H, W, 3]`."""
    images = np.asarray(images).astype(int)
    assert np.all(images == images[:, :1, :1])
    return images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1]


def texture(seed, height, width, kind="JPEG"):
    """Returns a smooth random image, of which every part differs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return encode(np.asarray(image), kind)


def write(root, files):
    """Writes `{path: bytes}` below a folder."""
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


def prepare(name, data_dir, splits):
    """Writes a set of TFDS's own as array_record: `{split: [features]}`."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
    builder._split_generators = lambda _: {
        split: iter([(f"{i:06d}", e) for i, e in enumerate(examples)])
        for split, examples in splits.items()
    }
    builder._log_download_bytes = builder._log_download_done = lambda: None
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return builder.data_path
