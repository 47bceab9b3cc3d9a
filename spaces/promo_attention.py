"""Study 2: XGBoost and RandomForest distilled through an attention gate, on a table of promotional campaigns.

Source: Shenggang Li's article on attention-weighted multi-teacher distillation (2025): one run on a table that was not
released, teachers that label the rows they were fitted on, and a "compact" model that needs both of them at inference.
The table here is generated as the article describes it, with a dial for what its gate presumes: that one teacher is
better on some rows and the other on others.
"""

from spaces.families import Promotions, TableMlp, TableModels
from spaces.space import Choice, Config, Range, Space
from spaces.study import Arm, Budget, Claim, Published, Study

ORDINARY: Space = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "batch_size": Choice((64, 256, 1024, "full")),
    "dropout": Range(0.0, 0.5),
    "hidden": Choice(("32-16", "64-32", "128-64")),
}
LIBRARY: Config = {"learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 256, "dropout": 0.0, "hidden": "64-32"}
PRINTED: Config = {"learning_rate": 5e-4, "weight_decay": 0.0, "batch_size": "full", "dropout": 0.0, "hidden": "64-32"}
ARTICLE: Config = {**PRINTED, "temperature": 1.0, "kl_weight": 0.3, "blend_weight": 0.5}
DISTILLATION: Space = {"temperature": Range(0.5, 5.0, log=True), "kl_weight": Range(0.01, 10.0, log=True)}
KD: Config = {**LIBRARY, "temperature": 1.0, "kl_weight": 1.0}
GATE: Space = {"entropy_weight": Range(1e-3, 1.0, log=True)}
BLEND: Space = {"blend_weight": Range(0.05, 0.95)}
SOURCE = "Shenggang Li, attention-weighted multi-teacher distillation, 2025"
OTHER_TABLE = "its table was not released; ours is generated"

STUDY = Study(
    name="promo-attention",
    about="Can one small network replace XGBoost and RandomForest, and does an attention gate over them help?",
    family="tabular",
    metric="auc",
    data=Promotions(),
    student=TableMlp(),
    teacher=TableModels(),
    arms={
        "hard_labels": Arm(
            variant="hard_labels",
            space=ORDINARY,
            default=LIBRARY,
            about="cross-entropy on the labels: the student alone, tuned like every other arm",
        ),
        "hard_labels_again": Arm(
            variant="hard_labels",
            space=ORDINARY,
            default=LIBRARY,
            about="the A/A control: the baseline searched and confirmed a second time",
        ),
        "label_smoothing": Arm(
            variant="label_smoothing",
            space={**ORDINARY, "smoothing": Range(0.02, 0.5, log=True)},
            default={**LIBRARY, "smoothing": 0.1},
            about="cross-entropy on smoothed labels: is a teacher needed at all?",
        ),
        "kd_shuffled": Arm(
            variant="kd_uniform",
            space={**ORDINARY, **DISTILLATION},
            default=KD,
            teacher_rows="shuffled_within_class",
            about="kd_uniform with the teachers' rows permuted within each class: is knowledge of the sample used?",
        ),
        "kd_uniform": Arm(
            variant="kd_uniform",
            space={**ORDINARY, **DISTILLATION},
            default=KD,
            teacher_rows="own",
            about="cross-entropy + kl_weight x T² KL(plain average of the teachers || student); the student runs alone",
        ),
        "attention_student": Arm(
            variant="attention_student",
            space={**ORDINARY, **DISTILLATION, **GATE},
            default={**KD, "entropy_weight": 0.01},
            teacher_rows="own",
            about="kd_uniform with a gate that learns to weigh the teachers by row; the student runs alone",
        ),
        "attention_blend": Arm(
            variant="attention_blend",
            space={**ORDINARY, **DISTILLATION, **GATE, **BLEND},
            default={**KD, "kl_weight": 0.3, "entropy_weight": 0.01, "blend_weight": 0.5},
            teacher_rows="own",
            about="the article's model: part student, part gated mix of the teachers, which it needs at inference",
        ),
        "uniform_blend": Arm(
            variant="uniform_blend",
            space={**ORDINARY, **DISTILLATION, **BLEND},
            default={**KD, "kl_weight": 0.3, "blend_weight": 0.5},
            teacher_rows="own",
            about="attention_blend with the teachers' plain average in place of the gate",
        ),
        "global_gate_blend": Arm(
            variant="global_gate_blend",
            space={**ORDINARY, **DISTILLATION, **GATE, **BLEND},
            default={**KD, "kl_weight": 0.3, "entropy_weight": 0.01, "blend_weight": 0.5},
            teacher_rows="own",
            about="attention_blend with one gate for all rows: is anything gained by looking at the row?",
        ),
        "uniform_mix": Arm(
            variant="uniform_mix",
            default={},
            teacher_rows="own",
            about="the plain average of the calibrated teachers: nothing is learned",
        ),
        "logistic_stack": Arm(
            variant="logistic_stack",
            default={},
            teacher_rows="own",
            about="a logistic regression on the teachers' out-of-fold logits: stacking",
        ),
        "as_printed": Arm(
            variant="as_printed",
            default=ARTICLE,
            teacher_rows="in_sample",
            published=Published(0.7928, ARTICLE, statistic="val_selected"),
            about="as the article prints it: one-sided KL, teachers that label their own training rows, 50 steps",
        ),
        "xgboost": Arm(
            variant="one_teacher",
            default={"teacher": "xgboost"},
            teacher_rows="own",
            published=Published(0.7889, {"teacher": "xgboost"}),
            about="the teacher alone",
        ),
        "random_forest": Arm(
            variant="one_teacher",
            default={"teacher": "random_forest"},
            teacher_rows="own",
            published=Published(0.7691, {"teacher": "random_forest"}),
            about="the teacher alone",
        ),
    },
    budget=Budget(
        seed_epochs_per_arm=6000,
        seeds_per_trial=4,
        confirm_seeds=20,
        max_epochs=50,
        patience=10,
        reduction_factor=3,
        reevaluate_share=0.2,
    ),
    quick=Budget(
        seed_epochs_per_arm=960,
        seeds_per_trial=4,
        confirm_seeds=10,
        max_epochs=24,
        patience=10,
        subsearches=2,
        reevaluate_share=0.2,
    ),
    confirm_teachers=5,
    contrasts=(
        ("kd_uniform", "hard_labels", "does it help"),
        ("kd_uniform", "label_smoothing", "is a teacher needed"),
        ("kd_uniform", "kd_shuffled", "is knowledge of the sample used"),
        ("attention_student", "kd_uniform", "does the gate help the student"),
        ("attention_blend", "uniform_blend", "does the gate beat the plain average"),
        ("attention_blend", "global_gate_blend", "does the gate use the row"),
        ("attention_blend", "uniform_mix", "does the article's model beat the plain average of its teachers"),
    ),
    claims=(
        Claim("as_printed", "xgboost", 0.0039, SOURCE, not_comparable=OTHER_TABLE),
        Claim("as_printed", "random_forest", 0.0237, SOURCE, not_comparable=OTHER_TABLE),
    ),
    source=SOURCE,
    notes=(
        "The article's code cannot run as printed (an embedding of 1 unit feeds a gate of 32); as_printed is its text: "
        "embedding 64-32, gate on the 32, Adam 5e-4, full batch, at most 50 epochs, patience 10 on validation AUC.",
        "Students train on rows without a promotion and are tested on rows with one, as the article did.",
    ),
)
