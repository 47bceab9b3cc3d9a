"""A distillation variant of your own. `distune check my-study/study.yaml` tries it before anything is trained.

student, teacher: logits (..., batch, classes), and what the family offers by layer: of images `features["layer3"]` of
both and `attention["layer3"]` of the teacher, for the layers that the arm's `layers` names; of tables and MLPs
`features["hidden"]` of the student; of tables also `teacher.members` (..., batch, teachers), each teacher's logit.
labels: (..., batch). hp: the hyperparameters of the arm, by name.

Every term is one number a sample, (..., batch), and a weight; distune averages and adds them up. Written with `...` and
negative dimensions, as here, it trains many seeds at once. It keeps nothing between calls and changes nothing it gets.
"""

from torch import Tensor

from distune import Outputs, Term, losses


def my_variant(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """Cross-entropy + own_weight x T² KL(teacher || student), of samples that the teacher gets right."""
    right = (teacher.logits.argmax(dim=-1) == labels).to(student.logits.dtype)
    kd = losses.hinton_kd(student.logits, teacher.logits, hp["temperature"])
    return {
        "ce": Term(losses.cross_entropy(student.logits, labels), 1.0),
        "kd_where_right": Term(right * kd, hp["own_weight"]),
    }


# What is learned beside the student, and dropped at export, is made by a function named <variant>_extras, and called as
# student.extras["adapter"](...). Shapes are of one sample, such as student_shapes["features.hidden"] == (32,).
#
# def my_variant_extras(student_shapes, teacher_shapes, hp):
#     return {"adapter": torch.nn.Linear(student_shapes["features.hidden"][0], teacher_shapes["logits"][0])}
