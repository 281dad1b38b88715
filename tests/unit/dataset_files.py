"""Small data sets in their real on-disk formats, for whichever test needs files to read."""

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

MNIST_FILES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def pixels(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(folder: Path, suffix: str = "", num: tuple[int, int] = (30, 20)) -> dict[str, np.ndarray]:
    """MNIST in idx-ubyte, packed when suffix is .gz; returns the arrays by the names of the files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name in MNIST_FILES:
        n = num[name.startswith("t10k")]
        is_images = "images" in name
        array = pixels(n, 28, 28, seed=n) if is_images else (np.arange(n) % 10).astype(np.uint8)
        header = [0x803, n, 28, 28] if is_images else [0x801, n]
        content = b"".join(word.to_bytes(4, "big") for word in header) + array.tobytes()
        (raw / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
        arrays[name] = array
    return arrays


def write_cifar(
    folder: Path, name: str, num: int = 20, present: int | None = None
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """CIFAR's python version; returns images (n, 3, 32, 32) and labels by file. present: classes that occur, not all"""
    if name == "cifar10":
        sub, files, key, classes = "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels", 10
        files = [*files, "test_batch"]
    else:
        sub, files, key, classes = "cifar-100-python", ["train", "test"], "fine_labels", 100
    (folder / sub).mkdir(parents=True, exist_ok=True)
    content = {}
    for i, file in enumerate(files):
        x, y = pixels(num, 3, 32, 32, seed=i), [(i + 1 + j) % (present or classes) for j in range(num)]
        entry = {
            "batch_label": file,
            key: y,
            "data": x.reshape(num, 3072),
            "filenames": [f"{j}.png" for j in range(num)],
        }
        (folder / sub / file).write_bytes(pickle.dumps(entry, protocol=2))
        content[file] = (x, y)
    return content


def photograph(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture, as photographs are: what JPEG makes of noise says little about a decoder."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def save_image(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, compress_level=1)  # of PNG alone


def write_tinyimagenet(folder: Path, classes: int = 10, num: tuple[int, int] = (6, 5)) -> Path:
    """Tiny ImageNet as its archive unpacks, `num` training and test images per class; returns its folder."""
    root = folder / "tiny-imagenet-200"
    # Not in alphabetical order, as in the real file.
    wnids = (
        [f"n{(7 * k) % classes:08d}" for k in range(classes)] if classes % 7 else [f"n{k:08d}" for k in range(classes)]
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    annotations = []
    for k, wnid in enumerate(wnids):
        names = [f"{wnid}_{i}.JPEG" for i in range(num[0])]
        for i, name in enumerate(names):
            save_image(
                root / "train" / wnid / "images" / name, photograph(64, 64, 100 * k + i, "L" if i == 1 else "RGB")
            )
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("".join(f"{name}\t0\t0\t62\t62\n" for name in names))
        annotations += [(i * classes + k, wnid) for i in range(num[1])]
    lines = []
    for number, wnid in sorted(annotations):
        save_image(root / "val" / "images" / f"val_{number}.JPEG", photograph(64, 64, 50_000 + number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def write_imagenet(folder: Path, classes: int = 5, num: tuple[int, int] = (6, 2)) -> Path:
    """ImageNet's folders of classes, `num` training and validation images in each, of different shapes and modes."""
    shapes = [(60, 40), (40, 70), (280, 256), (32, 32), (45, 45), (64, 48)]
    for part, per_class in zip(("train", "val"), num, strict=True):
        for k in range(classes):
            for i in range(per_class):
                mode = {1: "L", 4: "CMYK"}.get(i, "RGB")  # a few of the real ones are grey, and fewer CMYK
                wnid, image = f"n{1440764 + 11 * k:08d}", photograph(*shapes[i % 6], 10 * k + i, mode)
                name = f"{wnid}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{i * classes + k:08d}.JPEG"
                save_image(folder / part / wnid / name, image)
    return folder


def write_imagenet100(folder: Path, classes: int = 100, num: tuple[int, int] = (2, 1), subset: str = "100") -> Path:
    """A subset of ImageNet: the folders, and the lists that say which of their images belong to it."""
    for part, per_class in zip(("train", "val"), num, strict=True):
        lines = []
        for k in range(classes):
            wnid = f"n{1440764 + 11 * ((3 * k) % classes if classes % 3 else k):08d}"
            for i in range(per_class):
                name = f"{part}/{wnid}/{wnid}_{i}.JPEG"
                save_image(folder / name, photograph(40, 36, 10 * k + i))
                lines.append(f"{name} {k}\n")
            save_image(folder / part / wnid / "unlisted.JPEG", photograph(36, 36, k))
        (folder / f"{part}_{subset}.txt").write_text("".join(lines))
    return folder


def write_imagenet100small(folder: Path, classes: int = 100, num: tuple[int, int] = (2, 1)) -> Path:
    """The small subset, in the folder of its own that the reference gives it."""
    return write_imagenet100(folder / "ImageNet100-small", classes, num, "100_small")


def write_core50(folder: Path, per_session: int = 1) -> Path:
    """CORe50's 11 sessions of 50 objects, `per_session` images of each object in each session."""
    root = folder / "core50_128x128"
    for session in range(1, 12):
        for thing in range(1, 51):
            for i in range(per_session):
                name = f"C_{session:02d}_{thing:02d}_{i:03d}.png"
                save_image(root / f"s{session}" / f"o{thing}" / name, photograph(128, 128, 50 * session + thing + i))
    return root


def write_ptycho(folder: Path, scans: int = 4, num: int = 24, size: int = 32, void: int = 3) -> Path:
    """Scans of `num` patterns of size x size pixels, the first `void` of each without an object; returns where."""
    root = folder / "Ptycho" / "train"
    for scan in range(204, 204 + scans):
        random = np.random.default_rng(scan)
        phase = random.uniform(-1, 1, (num, size, size)).astype(np.float32)
        phase[:void] *= 0.05
        patches = random.uniform(0.5, 1, phase.shape).astype(np.float32) * np.exp(1j * phase)
        patterns = np.abs(np.fft.fftshift(np.fft.fft2(patches), axes=(1, 2))).astype(np.float32)
        (root / str(scan)).mkdir(parents=True, exist_ok=True)
        np.save(root / str(scan) / "patched_psi.npy", patches.astype(np.complex64))
        np.save(root / str(scan) / "cropped_exp_diffr_data.npy", patterns)
    return root
