"""Small versions of the data sets of parameter-efficient continual learning, in their real on-disk formats."""

from pathlib import Path

import numpy as np
from dataset_files import photograph, pixels, save_image, write_cifar, write_mnist
from PIL import Image
from scipy.io import savemat

LETTERS = "ABCDEFGHIJ"


def write_photograph(path: Path, seed: int) -> str:
    """A small JPEG; returns its name."""
    save_image(path, photograph(24 + seed % 5, 20, seed))
    return path.name


def write_imagenet_r(folder: Path, classes: int = 4, num: int = 5, parts: tuple[str, ...] = ("",)) -> Path:
    """`num` images of each class in the class folders of every part; "" is the folder itself."""
    root = folder / "imagenet-r"
    for p, part in enumerate(parts):
        for k in range(classes):
            place = root / part / f"n{1443537 + 7 * k:08d}"
            for i in range(num):
                write_photograph(place / f"art_{10 * p + i}.jpg", 100 * p + 10 * k + i)
    return root


def write_imagenet_r_lists(folder: Path, classes: int = 4) -> Path:
    """Class folders of five images, of which the lists name three for training and one for testing."""
    root = write_imagenet_r(folder, classes)
    names = [f"{place.name}/{path.name}" for place in sorted(root.iterdir()) for path in sorted(place.iterdir())]
    (root / "train.txt").write_text("".join(f"{name}\n" for i, name in enumerate(names) if i % 5 in (0, 2, 3)))
    (root / "test.txt").write_text("".join(f"{name}\n" for i, name in enumerate(names) if i % 5 == 4))
    return root


def write_cub(folder: Path, classes: int = 200, num: int = 3) -> Path:
    """CUB-200-2011: the first of every three images of a class is for testing."""
    root = folder / "CUB_200_2011"
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for k in range(1, classes + 1):
        for i in range(num):
            number += 1
            path = root / "images" / f"{k:03d}.Bird_{k}" / f"Bird_{k}_{i:04d}.jpg"
            write_photograph(path, number)
            lines["images"].append(f"{number} {path.parent.name}/{path.name}\n")
            lines["image_class_labels"].append(f"{number} {k}\n")
            lines["train_test_split"].append(f"{number} {int(i % 3 != 0)}\n")
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("".join(content))
    return root


def write_cars(folder: Path, classes: int = 196, num: tuple[int, int] = (2, 1)) -> Path:
    """Stanford Cars in torchvision's layout, with the annotations as MATLAB's struct arrays."""
    root = folder / "stanford_cars"
    files = {"train": root / "devkit" / "cars_train_annos.mat", "test": root / "cars_test_annos_withlabels.mat"}
    files["train"].parent.mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([f"Car {k}" for k in range(classes)], object)})
    kinds = [(f"bbox_{corner}", np.uint16) for corner in ("x1", "y1", "x2", "y2")]
    for (part, file), per_class in zip(files.items(), num, strict=True):
        rows = []
        for i in range(per_class * classes):
            name = write_photograph(root / f"cars_{part}" / f"{i + 1:05d}.jpg", i)
            rows.append((1, 1, 20, 20, (5 * i) % classes + 1, name))
        annotations = np.array(rows, dtype=[*kinds, ("class", np.uint8), ("fname", object)])
        savemat(file, {"annotations": annotations[None]})
    return root


def write_dogs(folder: Path, classes: int = 120, num: tuple[int, int] = (2, 1)) -> Path:
    """Stanford Dogs: Images/, train_list.mat and test_list.mat with cells of paths and labels from 1."""
    root = folder / "stanford_dogs"
    for p, (part, per_class) in enumerate(zip(("train", "test"), num, strict=True)):
        paths, labels = [], []
        for k in range(classes):
            for i in range(per_class):
                path = root / "Images" / f"n{2085620 + k:08d}-breed_{k}" / f"n{2085620 + k:08d}_{10 * p + i}.jpg"
                write_photograph(path, 10 * k + i + 5 * p)
                paths.append(f"{path.parent.name}/{path.name}")
                labels.append(k + 1)
        cells = np.array(paths, dtype=object)[:, None]
        savemat(root / f"{part}_list.mat", {"file_list": cells, "labels": np.array(labels, np.uint8)[:, None]})
    return root


def write_aircraft(folder: Path, classes: int = 5, num: tuple[int, int] = (3, 2)) -> Path:
    """FGVC-Aircraft; names of variants have spaces and are not sorted."""
    data = folder / "fgvc-aircraft-2013b" / "data"
    variants = [f"Variant {(3 * k + 1) % classes}-{k}00" for k in range(classes)]
    data.mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{name}\n" for name in variants))
    number = 0
    for part, per_class in zip(("trainval", "test"), num, strict=True):
        lines = []
        for _ in range(per_class):
            for name in variants:
                number += 1
                write_photograph(data / "images" / f"{34309 + number:07d}.jpg", number)
                lines.append(f"{34309 + number:07d} {name}\n")
        (data / f"images_variant_{part}.txt").write_text("".join(lines))
    return data


def write_svhn(folder: Path, num: tuple[int, int] = (30, 20)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """SVHN's cropped digits; returns images (n, 32, 32, 3) and the labels of the file, 1 to 10, by part."""
    root = folder / "SVHN"
    root.mkdir(parents=True, exist_ok=True)
    content = {}
    for part, n in zip(("train", "test"), num, strict=True):
        x, y = pixels(n, 32, 32, 3, seed=n), (np.arange(n) % 10 + 1).astype(np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": y[:, None]}, do_compression=True)
        content[part] = (x, y)
    return content


def write_notmnist(folder: Path, num: tuple[int, int] = (3, 2)) -> dict[str, np.ndarray]:
    """notMNIST; returns the images (n, 28, 28) by part, letter by letter in the order of names."""
    content = {}
    for part, per_class in zip(("Train", "Test"), num, strict=True):
        x = pixels(len(LETTERS) * per_class, 28, 28, seed=per_class)
        for i, image in enumerate(x):
            path = folder / "notMNIST" / part / LETTERS[i // per_class] / f"font{i % per_class}.png"
            save_image(path, Image.fromarray(image))
        content[part] = x
    return content


def write_fashionmnist(folder: Path, suffix: str = "") -> dict[str, np.ndarray]:
    """Fashion-MNIST: MNIST's format in a folder of its own."""
    arrays = write_mnist(folder / "elsewhere", suffix)
    (folder / "FashionMNIST").mkdir(parents=True)
    (folder / "elsewhere" / "MNIST" / "raw").rename(folder / "FashionMNIST" / "raw")
    return arrays


def write_five_datasets(folder: Path) -> None:
    """The files of all five."""
    write_svhn(folder)
    write_mnist(folder)
    write_cifar(folder, "cifar10")
    write_notmnist(folder)
    write_fashionmnist(folder)
