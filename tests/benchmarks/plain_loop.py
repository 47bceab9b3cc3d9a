"""The `mlp-ensemble` student distilled by the DataLoader loop that a user would write: one seed, one configuration.

Claim: one seed of 50 epochs takes 3.3 s on one quiet core (median, n=5, 3.1 to 3.6).
Run: python -m tests.benchmarks.plain_loop
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 50
PUBLISHED = {"lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64, "temperature": 3.0, "kd_weight": 0.7}


@dataclass(frozen=True)
class Data:
    x_train: torch.Tensor  # (3200, 20) float32, standardised
    y_train: torch.Tensor  # (3200,) int64
    x_val: torch.Tensor  # (800, 20)
    y_val: torch.Tensor  # (800,)


def load_data() -> Data:
    """The study's 5,000 rows, split 64 / 16 / 20 %; the scaler fits training rows, test rows stay out."""
    x, y = make_classification(n_samples=5000, n_features=20, n_informative=10, n_redundant=5, random_state=42)
    x, _, y, _ = train_test_split(x, y, test_size=0.2, random_state=42)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.2, random_state=42)
    scaler = StandardScaler().fit(x_train)
    return Data(
        torch.as_tensor(scaler.transform(x_train), dtype=torch.float32),
        torch.as_tensor(y_train, dtype=torch.int64),
        torch.as_tensor(scaler.transform(x_val), dtype=torch.float32),
        torch.as_tensor(y_val, dtype=torch.int64),
    )


def teacher_logits(data: Data) -> np.ndarray:
    """(3200, 2) float32 logits of a linear stand-in for the ensemble: speed does not depend on their values."""
    score = LogisticRegression().fit(data.x_train.numpy(), data.y_train.numpy()).decision_function(data.x_train.numpy())
    return np.stack([-score / 2, score / 2], axis=1).astype(np.float32)


def train(
    config: dict[str, Any], data: Data, teacher: np.ndarray, seed: int = 0, epochs: int = EPOCHS
) -> Iterator[tuple[int, float]]:
    """Yield (epoch, validation accuracy) after each epoch, from 1; `config` has the keys of `PUBLISHED`."""
    torch.set_num_threads(1)  # a worker of Ray or Optuna has one core
    torch.manual_seed(seed)
    temperature, kd_weight = config["temperature"], config["kd_weight"]
    student = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(student.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    dataset = TensorDataset(data.x_train, data.y_train, torch.from_numpy(teacher))
    loader = DataLoader(dataset, batch_size=config["batch_size"], shuffle=True)
    for epoch in range(1, epochs + 1):
        student.train()
        for x, y, t in loader:
            logits = student(x)
            soft = F.kl_div(
                F.log_softmax(logits / temperature, dim=1), F.softmax(t / temperature, dim=1), reduction="batchmean"
            )
            loss = kd_weight * temperature**2 * soft + (1 - kd_weight) * F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        student.eval()
        with torch.no_grad():
            accuracy = (student(data.x_val).argmax(dim=1) == data.y_val).float().mean().item()
        yield epoch, accuracy


def solo_seconds(data: Data, teacher: np.ndarray, seed: int = 0) -> float:
    """Wall seconds of one seed for 50 epochs at the published configuration."""
    started = time.perf_counter()
    for _ in train(PUBLISHED, data, teacher, seed):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    data = load_data()
    teacher = teacher_logits(data)
    for epoch, accuracy in train(PUBLISHED, data, teacher):
        print(f"epoch {epoch:2d}  validation accuracy {accuracy:.4f}")
    print("seconds of 50 epochs:", *(f"{solo_seconds(data, teacher, seed):.2f}" for seed in range(5)))
