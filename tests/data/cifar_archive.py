"""Small archives in CIFAR's binary layout, and TFDS's knowledge of them."""

import hashlib
import io
import tarfile

import numpy as np

LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-bin/",
        {f"data_batch_{i}.bin": 6 for i in range(1, 6)},
        {"test_batch.bin": 10},
        {"batches.meta.txt": [f"class{i}" for i in range(10)]},
    ),
    "cifar100": (
        "cifar-100-binary/",
        {"train.bin": 100},
        {"test.bin": 100},
        {
            "coarse_label_names.txt": [f"coarse{i}" for i in range(20)],
            "fine_label_names.txt": [f"fine{i}" for i in range(100)],
        },
    ),
}


def write(path, name, seed=0):
    """Writes an archive; returns {split: (images [N,32,32,3], labels [N])}."""
    prefix, train, test, label_files = LAYOUTS[name]
    rng = np.random.default_rng(seed)
    contents, truth = {}, {}
    for split, files in (("train", train), ("test", test)):
        images, labels = [], []
        for file, count in files.items():
            pixels = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
            fine = rng.integers(0, 10 if name == "cifar10" else 100, count)
            columns = [fine // 5, fine] if name == "cifar100" else [fine]
            head = np.stack(columns, axis=1).astype(np.uint8)
            rows = np.concatenate([head, pixels.reshape(count, -1)], axis=1)
            contents[file] = rows.tobytes()
            images.append(pixels.transpose(0, 2, 3, 1))
            labels.append(fine)
        truth[split] = np.concatenate(images), np.concatenate(labels)
    for file, names in label_files.items():
        contents[file] = "".join(f"{n}\n" for n in names).encode() + b"\n"
    with tarfile.open(path, "w:gz") as tar:
        for file, data in contents.items():
            member = tarfile.TarInfo(prefix + file)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return truth


def accept(monkeypatch, name, path):
    """Makes TFDS expect the archive at `path`, at a file:// address."""
    import tensorflow_datasets as tfds

    cls = tfds.builder_cls(name)
    data = path.read_bytes()
    layout = cls.__dict__["_cifar_info"].fget
    url = path.as_uri()
    monkeypatch.setattr(
        cls, "_cifar_info", property(lambda self: layout(self)._replace(url=url))
    )
    info = tfds.core.download.checksums.UrlInfo(
        size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=path.name
    )
    monkeypatch.setattr(cls, "url_infos", {url: info})
