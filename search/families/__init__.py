"""What the search must know of each family of students, one module a family, all with the same functions.

TRAINABLE: `module:function`. PACKS: whether seeds train in one program.

build_teacher(study, seed, fit, dataset, teacher_set, device): one teacher set on the rows `fit`, cached or trained now.
label(study, teacher, fit, dataset, validation): what a trial is given of it; validation rows where there are some.
notes(study, teacher, outputs, fit): sentences that a reader of the result must know of it; fit: the rows it labels.
is_built(study, seed, fit, dataset, teacher_set): whether `build_teacher` would find it in the cache.
teacher_seconds(study, dataset): about how long one teacher set takes, measured on a sample now.
inputs(dataset, fit, teachers): the rows to fit on and to validate on as students read them, and the encoder's state.
judged(study, seed, dataset, fit): the test rows by split, as students read them. Opens the test split.
judge(study, config, last, rows, split, validation): metrics of a trained pack by name, and its predictions (S, rows).
judge_teacher(study, teacher, rows, split): a teacher's predictions {member: (rows,)}, and facts {member: {...}}.
sample(study, dataset): a part of it to estimate time on, and its share; without_teacher(study, config): likewise.
made_up(study, dataset, folder): outputs of a teacher that there is not, drawn at random for the training rows; what is
large lies in the folder.
shapes(study, config, dataset): of one sample of what a variant is given, of student and teacher (or None).
refuse_unusable(study, say): ValueError for what the networks, the data or the machine cannot do.
student(study, arm, state, place): one confirmed student as a module.
"""

import importlib
from types import ModuleType

from spaces import Study


def of(study: Study) -> ModuleType:
    """The module of the study's family, loaded when asked for: each brings libraries that the others do without."""
    return importlib.import_module(f"search.families.{study.family}")
