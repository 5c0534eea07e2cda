"""What the workers of the demo run: some epochs of one network on the digits that come with scikit-learn."""

from __future__ import annotations

import functools
import os
import pickle
import time
from pathlib import Path
from typing import Any

# Two workers share the cores; a BLAS that starts a thread for each core would make both slow.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

#: Of the 1,797 images, so many train; the rest validates.
TRAINING_IMAGES = 1200
CLASSES = list(range(10))


@functools.cache
def _digits() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split: tuple[Any, Any, Any, Any] = tuple(
        train_test_split(images / 16.0, labels, train_size=TRAINING_IMAGES, random_state=0, stratify=labels)
    )
    return split


def new_network(config: dict[str, Any], seed: int) -> Any:
    """Make an untrained network of a configuration."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        hidden_layer_sizes=tuple(config["hidden"]),
        activation=config["activation"],
        solver=config["solver"],
        learning_rate_init=config["lr"],
        alpha=config["alpha"],
        batch_size=config["batch"],
        random_state=seed,
    )


def train_rung(config: dict[str, Any], seed: int, epochs: int, before: str | None, after: str) -> dict[str, float]:
    """Train for `epochs` more epochs, from the checkpoint `before` (None: from the start) to the checkpoint `after`.

    Returns the accuracy on the validation images, and the seconds that all of it took. Running it twice gives the
    same: a checkpoint is never changed in place.
    """
    from schedd import report

    started = time.perf_counter()
    images, test_images, labels, test_labels = _digits()
    network = new_network(config, seed) if before is None else pickle.loads(Path(before).read_bytes())
    for epoch in range(epochs):
        network.partial_fit(images, labels, classes=CLASSES)
        report(epoch + 1, loss=float(network.loss_))
    _write(Path(after), pickle.dumps(network))
    accuracy = float(network.score(test_images, test_labels))
    return {"accuracy": accuracy, "loss": float(network.loss_), "seconds": time.perf_counter() - started}


def _write(path: Path, data: bytes) -> None:
    half_done = path.with_suffix(f".{os.getpid()}")
    half_done.write_bytes(data)
    half_done.replace(path)
