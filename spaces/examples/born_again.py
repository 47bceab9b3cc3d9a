"""Self-distillation: Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born Again Neural Networks", ICML 2018,
arXiv 1805.04770.

The student is built as its teacher is, which the study says (born-again.yaml), and learns from it once more. One
generation; the paper repeats this and averages its generations.
"""

from torch import Tensor

from distune import Outputs, Term, losses


def born_again(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """KL(teacher || student) without a temperature and without labels: the paper's BAN, equation 3."""
    return {"kd": Term(losses.hinton_kd(student.logits, teacher.logits, 1.0), 1.0)}


def born_again_labels(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """The same with cross-entropy on the labels beside it, at equal weight: BAN+L."""
    return {"ce": Term(losses.cross_entropy(student.logits, labels), 1.0), **born_again(student, teacher, labels, hp)}


def confidence_weighted(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """Cross-entropy on labels, each sample weighed by its share of the teacher's confidence in the batch (CWTM, eq. 9).

    Nothing of the teacher's other classes is used: what this gains is no dark knowledge.
    """
    confidence = teacher.logits.softmax(dim=-1).amax(dim=-1)
    share = confidence / confidence.mean(dim=-1, keepdim=True)  # sums to the batch's size, so that the mean is eq. 9
    return {"ce_weighted": Term(share * losses.cross_entropy(student.logits, labels), 1.0)}
