"""Gates over teachers: which teacher to trust, for every row or for all."""

from collections.abc import Sequence

from torch import Tensor, nn

from trainables.models.mlp import StackedMLP


class Gate(nn.Module):
    """S gates over the teachers, (S, batch, teachers) that sum to 1. kind: own | shared | global, as in `GATES`."""

    def __init__(self, kind: str, widths: Sequence[int], seeds: int) -> None:
        """widths: of input, hidden layers and teachers; a shared gate has no hidden layer, a global one no input."""
        super().__init__()
        self.kind, self._widths = kind, tuple(widths)
        self.network = StackedMLP(widths, seeds)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """x: (S or 1, batch, features); hidden: (S, batch, width), the student's last hidden layer if it shows one."""
        if self.kind == "global":
            logits = self.network(x.new_ones(1, 1, 1)).expand(-1, x.shape[1], -1)
        elif self.kind == "shared":
            assert hidden is not None
            logits = self.network(hidden)
        else:
            logits = self.network(x)
        gates: Tensor = logits.softmax(dim=-1)
        return gates

    def like(self) -> "Gate":
        return Gate(self.kind, self._widths, 1)
