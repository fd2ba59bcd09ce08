"""The tasks by kind, one module each; a new task is a new file here and a line in ``TASKS``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekd.progress import Progress
from edgekd.tasks import text_classification


class TaskModule(Protocol):
    """What the stages ask of a task. A data set is the module's own type; ids name an example for good."""

    def load(self, task: Any, seed: int, progress: Progress | None = None) -> Any:
        """Read and check the task's sources."""

    def with_transfer(self, dataset: Any, task: Any, seed: int, progress: Progress | None = None) -> Any:
        """The data set, and the unlabelled text that the task names."""

    def write(self, dataset: Any, out: Path) -> None:
        """Keep a data set in the folder ``out``; the same data give the same bytes."""

    def read(self, stage_path: Path) -> Any:
        """Read back what ``write`` kept."""

    def training_ids(self, stage_path: Path) -> list[str]:
        """Ids of the training split that ``write`` kept, and of what a limit cut off it."""

    def score(self, predictions: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
        """How good predictions are, 1 is best."""

    def draw_calibration(self, dataset: Any, count: int, seed: int) -> tuple[str, ...]:
        """Draw ids of training examples that represent the split."""


TASKS: dict[str, TaskModule] = {"text_classification": text_classification}
