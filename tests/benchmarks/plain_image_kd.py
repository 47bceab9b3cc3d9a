"""A ResNet-50 distilled into a ResNet-18 on 32x32 images by the DataLoader loop that a user would write: no distune.

Run: python -m tests.benchmarks.plain_image_kd FOLDER        # FOLDER/train/<class>/*.jpg; a line a step
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18, resnet50

BATCH = 128
TEMPERATURE = 4.0
AUGMENT = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ]
)


def train(dataset: Dataset, classes: int) -> Iterator[int]:
    """Train epoch after epoch on (augmented image, label) pairs, and yield after each step how many images it had."""
    teacher = resnet50(num_classes=classes)
    teacher.maxpool = nn.Identity()
    teacher.eval()
    student = resnet18(num_classes=classes)
    student.maxpool = nn.Identity()
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    while True:
        for images, labels in loader:
            with torch.no_grad():
                teacher_logits = teacher(images)
            logits = student(images)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = F.cross_entropy(logits, labels) + TEMPERATURE**2 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(labels)


if __name__ == "__main__":
    pictures = ImageFolder(Path(sys.argv[1]) / "train", AUGMENT)
    started = time.perf_counter()
    for images in train(pictures, len(pictures.classes)):
        print(f"{images / (time.perf_counter() - started):.0f} images a second", flush=True)
        started = time.perf_counter()
