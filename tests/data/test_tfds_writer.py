"""Sets written from small archives with the layouts of the published ones."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from typing import Any, Literal

import numpy as np
import pytest
import small_sets
import tensorflow_datasets as tfds

from zosam_jax import data
from zosam_jax.data.sets import imagenet as imagenet_module


def pack(path, files, mode: Literal["w", "w:gz"] = "w"):
    """Writes a tar of `{name: bytes}`; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def expect(monkeypatch, name, paths, base=None):
    """Makes TFDS expect some archives, at file:// addresses or below `base`."""
    infos = {}
    for path in paths:
        content = path.read_bytes()
        infos[f"{base or path.parent.as_uri()}/{path.name}"] = (
            tfds.core.download.checksums.UrlInfo(
                size=len(content),
                checksum=hashlib.sha256(content).hexdigest(),
                filename=None if "ILSVRC" in path.name else path.name,
            )
        )
    monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)


def examples(found, split):
    """Returns `{(class, encoded image)}` of a streamed set."""
    source = getattr(found.encoded, split)
    rows = source.read(range(len(source)))
    assert len(set(rows)) == len(rows)
    return {(found.class_names[label], bytes(image)) for image, label in rows}


def fields(place):
    return json.loads((place / "dataset_info.json").read_text())


@pytest.fixture
def imagenette(tmp_path, monkeypatch):
    classes = tfds.builder("imagenette/160px-v2", data_dir=tmp_path / "no").info
    names = classes.features["label"].names
    files, wanted = {}, {"train": set(), "val": set()}
    for split, each in (("train", 3), ("val", 1)):
        for c, label in enumerate(names):
            for i in range(each):
                image = small_sets.texture(1000 * each + 10 * c + i, 30 + i, 25 + c)
                files[f"imagenette2-160/{split}/{label}/{label}_{i}.JPEG"] = image
                wanted[split].add((label, image))
    files["imagenette2-160/.DS_Store"] = files["imagenette2-160/noise.csv"] = b"x"
    # The test images have names of their own, as the published ones.
    files = {
        k.replace("_0.J", "_v.J") if "/val/" in k else k: v for k, v in files.items()
    }
    path = pack(tmp_path / "remote" / "imagenette2-160.tgz", files, "w:gz")
    expect(monkeypatch, "imagenette", [path])
    return path, wanted


def test_imagenette_keeps_its_bytes(imagenette, tmp_path):
    path, wanted = imagenette
    lines = []
    name = "imagenette/160px-v2"
    data.prepare(name, tmp_path / "tfds", on_progress=lines.append)
    found = data.load(name, tmp_path / "tfds", image_size=16)
    assert examples(found, "train") == wanted["train"]
    assert examples(found, "test") == wanted["val"]
    size = path.stat().st_size
    assert lines[0] == f"imagenette2-160.tgz: {size:,} of {size:,} bytes"
    assert lines[-2] == f"archives read: {2 * size:,} of {2 * size:,} bytes"
    assert lines[-1].endswith("30 training and 10 test images.")
    place = tmp_path / "tfds" / "imagenette" / "160px-v2" / "1.0.0"
    assert fields(place)["fileFormat"] == "array_record"
    assert fields(place)["moduleName"].startswith("tensorflow_datasets.")
    assert {s["name"] for s in fields(place)["splits"]} == {"train", "validation"}
    assert not list((tmp_path / "tfds").rglob("*.tgz"))


def test_a_local_archive_or_its_folder(imagenette, tmp_path):
    path, wanted = imagenette
    moved = path.rename(tmp_path / path.name)
    for archive, place in ((moved, "a"), (moved.parent, "b")):
        data.prepare("imagenette/160px-v2", tmp_path / place, archive)
        found = data.load("imagenette/160px-v2", tmp_path / place)
        assert examples(found, "train") == wanted["train"]
    assert moved.exists()


def test_damage_is_repaired_by_the_command_that_is_named(imagenette, tmp_path):
    name = "imagenette/160px-v2"
    data.prepare(name, tmp_path / "tfds")
    records = next((tmp_path / "tfds").rglob("*train*array_record*"))
    records.write_bytes(records.read_bytes()[:500])
    with pytest.raises(data.DatasetError) as error:
        data.load(name, tmp_path / "tfds")
    assert f"data prepare {name} --data-dir {tmp_path / 'tfds'}" in str(error.value)
    data.prepare(name, tmp_path / "tfds")
    assert data.load(name, tmp_path / "tfds").num_train == 30


def test_a_class_that_is_none_is_refused(imagenette, tmp_path, monkeypatch):
    image = small_sets.texture(0, 20, 20)
    path = pack(imagenette[0], {"imagenette2-160/train/n0/a.JPEG": image}, "w:gz")
    expect(monkeypatch, "imagenette", [path])
    with pytest.raises(data.DatasetError, match=r"a.JPEG is of the class 'n0', which"):
        data.prepare("imagenette/160px-v2", tmp_path / "tfds")
    with pytest.raises(data.DatasetError, match="is not in"):
        data.load("imagenette/160px-v2", tmp_path / "tfds")


XML = b"""<annotation><size><width>40</width><height>20</height></size><object>
<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox>
</object></annotation>"""


@pytest.fixture
def pets(tmp_path, monkeypatch):
    images = {f"pug_{i}": small_sets.texture(i, 20, 40) for i in range(4)}
    images["Abyssinian_5"] = small_sets.texture(9, 20, 40, "PNG")  # named .jpg
    mask = small_sets.encode(np.ones((20, 40), np.uint8))
    notes = {
        "annotations/trainval.txt": b"pug_0 26 2 1\npug_1 26 2 1\nAbyssinian_5 1 1 1\n",
        "annotations/test.txt": b"pug_2 26 2 1\npug_3 26 2 1\n",
        "annotations/xmls/pug_0.xml": XML,
    }
    notes |= {f"annotations/trimaps/{name}.png": mask for name in images}
    files = {f"images/{name}.jpg": image for name, image in images.items()}
    files["images/pug_0.mat"] = b"x"
    folder = tmp_path / "remote"
    pack(folder / "images.tar.gz", files)
    pack(folder / "annotations.tar.gz", notes, "w:gz")

    def accept():
        paths = [folder / "images.tar.gz", folder / "annotations.tar.gz"]
        expect(monkeypatch, "oxford_iiit_pet", paths)
        return images, files, folder

    return accept


def test_pets_have_their_lists_masks_and_boxes(pets, tmp_path):
    images, _, _ = pets()
    data.prepare("oxford_iiit_pet", tmp_path / "tfds")
    found = data.load("oxford_iiit_pet", tmp_path / "tfds", image_size=16)
    train = {("pug", images["pug_0"]), ("pug", images["pug_1"])}
    assert examples(found, "train") == train | {("Abyssinian", images["Abyssinian_5"])}
    assert examples(found, "test") == {("pug", images[f"pug_{i}"]) for i in (2, 3)}
    assert next(found.batches(0, 3))[0].shape == (3, 16, 16, 3)
    builder: Any = tfds.builder("oxford_iiit_pet", data_dir=tmp_path / "tfds")
    rows = {e["file_name"]: e for e in builder.as_data_source("train")}
    first, last = rows[b"pug_0.jpg"], rows[b"Abyssinian_5.jpg"]
    # ymin, xmin, ymax, xmax in shares.
    np.testing.assert_allclose(first["head_bbox"], [0.25, 0.25, 0.75, 0.75])
    np.testing.assert_array_equal(last["head_bbox"], np.zeros(4))
    assert (first["species"], last["species"]) == (1, 0)
    np.testing.assert_array_equal(first["segmentation_mask"], np.ones((20, 40, 1)))


def test_a_pet_that_is_listed_and_not_there(pets, tmp_path):
    _, files, folder = pets()
    del files["images/pug_3.jpg"]
    pack(folder / "images.tar.gz", files)
    pets()
    with pytest.raises(data.DatasetError, match=r"lacks 1 images .* as pug_3.jpg"):
        data.prepare("oxford_iiit_pet", tmp_path / "tfds")
    assert not (tmp_path / "tfds" / "oxford_iiit_pet" / "4.0.0").exists()


def test_an_interrupted_set_keeps_what_it_has(pets, tmp_path):
    _, _, folder = pets()
    (folder / "images.tar.gz").rename(folder / "away")
    with pytest.raises(data.DatasetError) as error:
        data.prepare("oxford_iiit_pet", tmp_path / "tfds")
    command = f"python -m zosam_jax data prepare oxford_iiit_pet --data-dir {tmp_path}"
    assert f"Run `{command}/tfds` again to go on" in str(error.value)
    assert "--archive" in str(error.value)
    kept = tmp_path / "tfds" / "downloads" / "oxford_iiit_pet" / "annotations.tar.gz"
    assert kept.exists()
    (folder / "away").rename(folder / "images.tar.gz")
    (folder / "annotations.tar.gz").unlink()
    data.prepare("oxford_iiit_pet", tmp_path / "tfds")
    assert not kept.exists()


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """The two archives in a folder, and what is in them."""
    labels = ("n01440764", "n01443537", "n15075141")
    wanted, inner, folder = {"train": set(), "test": set()}, {}, tmp_path / "remote"
    for c, label in enumerate(labels):
        images = {
            f"{label}_{i}.JPEG": small_sets.texture(10 * c + i, 30, 20 + c)
            for i in range(3)
        }
        images[f"{label}_9.JPEG"] = small_sets.solid(c, kind="PNG")
        wanted["train"] |= {(label, image) for image in images.values()}
        content = pack(tmp_path / "inner.tar", images).read_bytes()
        inner[f"{label}.tar"] = content
    # Not in the order of their names, which is that of the labels.
    order = (3, 1, 2)
    held = {
        f"ILSVRC2012_val_{i:08d}.JPEG": small_sets.texture(100 + i, 25, 20)
        for i in order
    }
    for name, label in zip(sorted(held), labels, strict=True):
        wanted["test"].add((label, held[name]))
    pack(folder / "ILSVRC2012_img_train.tar", inner)
    pack(folder / "ILSVRC2012_img_val.tar", held)
    monkeypatch.setattr(imagenet_module, "validation_labels", lambda: list(labels))
    expect(monkeypatch, "imagenet2012", folder.iterdir(), "http://nowhere.invalid")
    return folder, wanted


def test_imagenet_from_its_two_archives(imagenet, tmp_path):
    folder, wanted = imagenet
    data.prepare("imagenet2012", tmp_path / "a", folder)
    manual = tmp_path / "b" / "downloads" / "manual"
    manual.parent.mkdir(parents=True)
    folder.rename(manual)
    data.prepare("imagenet2012", tmp_path / "b")
    for place in ("a", "b"):
        found = data.load("imagenet2012", tmp_path / place, image_size=16)
        assert examples(found, "train") == wanted["train"]
        assert examples(found, "test") == wanted["test"]
    assert len(list(manual.iterdir())) == 2  # the user's


def test_imagenet_says_where_to_get_it_and_where_to_put_it(imagenet, tmp_path):
    folder, _ = imagenet
    with pytest.raises(data.DatasetError) as error:
        data.prepare("imagenet2012", tmp_path / "tfds")
    message = str(error.value)
    for part in (
        "cannot be downloaded by a program",
        "https://image-net.org/download-images",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        str(tmp_path / "tfds" / "downloads" / "manual"),
        f"data prepare imagenet2012 --data-dir {tmp_path / 'tfds'}",
    ):
        assert part in message
    (folder / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(data.DatasetError, match=r"Not there: ILSVRC2012_img_val.tar"):
        data.prepare("imagenet2012", tmp_path / "tfds", folder)


def test_imagenet_with_another_checksum(imagenet, tmp_path):
    folder, _ = imagenet
    path = folder / "ILSVRC2012_img_val.tar"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(data.DatasetError, match=r"is not ILSVRC2012_img_val.tar, or"):
        data.prepare("imagenet2012", tmp_path / "tfds", folder)


def test_imagenet_with_fewer_images_than_labels(imagenet, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_module, "validation_labels", lambda: ["n01440764"] * 4)
    with pytest.raises(data.DatasetError, match=r"has 3 images, not the 4"):
        data.prepare("imagenet2012", tmp_path / "tfds", imagenet[0])


def test_tfds_has_a_label_for_every_validation_image():
    labels = imagenet_module.validation_labels()
    names = tfds.builder("imagenet2012", data_dir="/none").info.features["label"].names
    assert np.unique(labels, return_counts=True)[1].tolist() == [50] * 1000
    assert set(labels) == set(names)


def test_other_sets_are_left_to_tfds(tmp_path):
    with pytest.raises(data.DatasetError) as error:
        data.prepare("svhn_cropped", tmp_path)
    assert f"is not in {tmp_path / 'svhn_cropped'}" in str(error.value)
    assert "pip install 'zosam-jax[tf]'" in str(error.value)
    program = str(error.value).split("python -c ")[1].split("`")[0]
    assert "download_and_prepare()" in program
    assert list(tmp_path.iterdir()) == []
    example = {"id": "0", "image": small_sets.solid(0, 32, 32), "label": 1}
    small_sets.prepare(
        "svhn_cropped", tmp_path, {"train": [example], "test": [example]}
    )
    lines = []
    data.prepare("svhn_cropped", tmp_path, on_progress=lines.append)
    assert "1 training and 1 test images" in lines[0]


FILES = {
    f"set/{split}/{c}/{i}.png": small_sets.solid(i)
    for split in ("train", "test")
    for c in "ab"
    for i in range(2)
}


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("top", ["set/", ""])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_folder_is_unpacked_from_an_archive(tmp_path, kind, top):
    files = {top + name.removeprefix("set/"): x for name, x in FILES.items()}
    path = tmp_path / f"images.{kind}"
    if kind == "zip":
        zipped(path, files)
    else:
        pack(path, files, "w:gz" if kind == "tar.gz" else "w")
    lines = []
    name = f"folder:{tmp_path / 'unpacked'}"
    data.prepare(name, archive=path, on_progress=lines.append)
    assert lines[-1] == f"{name} is ready: 4 training and 4 test images of 2 classes."
    assert data.load(name).num_train == 4
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "unpacked"}
    data.prepare(name)
    with pytest.raises(data.DatasetError, match=r"is there already; .* not unpacked"):
        data.prepare(name, archive=path)


def test_an_archive_that_is_none_or_cut_leaves_nothing(tmp_path):
    whole = pack(tmp_path / "x.tar.gz", FILES, "w:gz")
    whole.write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "y.tar").write_bytes(b"nothing")
    for path in (whole, tmp_path / "y.tar", tmp_path / "none.tar"):
        with pytest.raises(data.DatasetError, match="could not be unpacked"):
            data.prepare(f"folder:{tmp_path / 'new'}", archive=path)
    assert {p.name for p in tmp_path.iterdir()} == {"x.tar.gz", "y.tar"}


def hostile_tar(path, kind, name="set/a/x.png", target="../b"):
    with tarfile.open(path, "w") as tar:
        for file, content in FILES.items():
            member = tarfile.TarInfo(file)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return path


def hostile_zip(path, name, mode=0o100644, content=b"../b"):
    zipped(path, FILES)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (hostile_tar, (tarfile.SYMTYPE,), "x.png is a link or device"),
        (hostile_tar, (tarfile.LNKTYPE, "x", "set/train/a/0.png"), "is a link or dev"),
        (hostile_tar, (tarfile.SYMTYPE, "set/a/up", ".."), "is a link or device"),
        (hostile_tar, (tarfile.FIFOTYPE,), "is a link or device"),
        (hostile_tar, (tarfile.CHRTYPE,), "is a link or device"),
        (hostile_tar, (tarfile.REGTYPE, "../evil.png"), "leads out of the folder"),
        (hostile_tar, (tarfile.REGTYPE, "/tmp/evil.png"), "leads out of the folder"),
        (hostile_tar, (tarfile.DIRTYPE, "set/../../evil"), "leads out of the folder"),
        (hostile_zip, ("../evil.png",), "leads out of the folder"),
        (hostile_zip, ("..\\evil.png",), "leads out of the folder"),
        (hostile_zip, ("/tmp/evil.png",), "leads out of the folder"),
        (hostile_zip, ("set/a/x.png", 0o120777), "is a link or device"),
    ],
)
def test_an_archive_gives_files_and_folders_alone(tmp_path, make, arguments, message):
    path = make(tmp_path / "x", *arguments)
    with pytest.raises(data.DatasetError, match=message):
        data.prepare(f"folder:{tmp_path / 'new'}", archive=path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_archive_that_is_larger_than_the_disk_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for path in (pack(tmp_path / "x.tar", FILES), zipped(tmp_path / "x.zip", FILES)):
        with pytest.raises(data.DatasetError, match="the disk has no room for set/"):
            data.prepare(f"folder:{tmp_path / 'new'}", archive=path)


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("long")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 3 << 20
        tar.addfile(member, io.BytesIO(b"x" * (3 << 20)))
    with pytest.raises(data.DatasetError, match="could not be unpacked"):
        data.prepare(f"folder:{tmp_path / 'new'}", archive=path)


def test_an_archive_that_is_no_set_leaves_nothing_that_is_taken_for_one(tmp_path):
    path = pack(tmp_path / "x.tar", {"a/0.png": b"no image", "b/notes.txt": b""})
    for _ in range(2):
        with pytest.raises(data.DatasetError, match=r"was not kept: .* no image in"):
            data.prepare(f"folder:{tmp_path / 'new'}", archive=path)
        assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("name", ["pydoc", "digits"])
def test_what_needs_no_preparation_says_so(name):
    lines = []
    data.prepare(name, on_progress=lines.append)
    assert lines[0].startswith(f"{name} needs no preparation: ")
