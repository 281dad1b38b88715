"""Small data sets in their real on-disk formats, for whichever test needs files to read."""

import gzip
import pickle
from pathlib import Path

import numpy as np

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


def write_cifar(folder: Path, name: str, num: int = 20) -> dict[str, tuple[np.ndarray, list[int]]]:
    """CIFAR's python version; returns images (n, 3, 32, 32) and labels by file."""
    if name == "cifar10":
        sub, files, key, classes = "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "labels", 10
        files = [*files, "test_batch"]
    else:
        sub, files, key, classes = "cifar-100-python", ["train", "test"], "fine_labels", 100
    (folder / sub).mkdir(parents=True, exist_ok=True)
    content = {}
    for i, file in enumerate(files):
        x, y = pixels(num, 3, 32, 32, seed=i), [(i + 1 + j) % classes for j in range(num)]
        entry = {
            "batch_label": file,
            key: y,
            "data": x.reshape(num, 3072),
            "filenames": [f"{j}.png" for j in range(num)],
        }
        (folder / sub / file).write_bytes(pickle.dumps(entry, protocol=2))
        content[file] = (x, y)
    return content
