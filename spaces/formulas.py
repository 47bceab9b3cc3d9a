"""The loss of every variant as a formula in plain text; `trainables/variants.py` computes it.

y: label; s, t: logits of student and teacher; p, q: probability of class 1 of student and teacher (tables); T:
temperature; H: entropy. Other names are hyperparameters.
"""

LEGEND = (
    "y label; s, t logits of student and teacher; tables: p the student's and q_j teacher j's probability of class 1, "
    "a the gate; T = temperature, _T: sigmoid(logit / T); H entropy"
)
_KD = "T² KL(softmax(t/T) || softmax(s/T))"
_WEIGHTED_KD = f"ce_weight CE(y, s) + kd_weight {_KD}"
_FA = "fa_weight mean_layers M (F_t - R F_s)² (R learned, M the mask)"
_AT = "at_weight mean_layers M |A_t/‖A_t‖ - A_s/‖A_s‖|² (A = Σ_channels F², in at_form)"
_TO_STUDENT = "kl_weight T² KL(m_T || p_T)"
_BLEND = "BCE(y, o) + kl_weight KL(m || o), o = blend_weight p + (1 - blend_weight) m"

FORMULAS: dict[str, str] = {
    "hard_labels": "CE(y, s)",
    "label_smoothing": "CE((1 - smoothing) y + smoothing / classes, s)",
    "kd": f"(1 - kd_weight) CE(y, s) + kd_weight {_KD}",
    "weighted_kd": _WEIGHTED_KD,
    "kd_fa": f"{_WEIGHTED_KD} + {_FA}",
    "kd_at": f"{_WEIGHTED_KD} + {_AT}",
    "kd_fa_at": f"{_WEIGHTED_KD} + {_FA} + {_AT}",
    "released_kd": "0.5 CE(y, s) + 0.5 (pooled F_t - detached F_s)²: its gradient is 0",
    "released_fa": "0.5 CE(y, s) + 0.5 (F_t - detached F_s)²: its gradient is 0",
    "released_at": "0.5 CE(y, s) + 0.5 |A_t - A_s|² of detached F_s: its gradient is 0",
    "released_fa_at": "0.5 CE(y, s) + 0.25 (F_t - detached F_s)² + 0.25 |A_t - A_s|²: their gradients are 0",
    "half_ce": "0.5 CE(y, s)",
    "kd_uniform": f"CE(y, s) + {_TO_STUDENT}, m = mean_j q_j",
    "attention_student": f"CE(y, s) + {_TO_STUDENT}, m = Σ_j a_j q_j; the gate: BCE(y, m) - entropy_weight H(a)",
    "attention_blend": f"{_BLEND}, m = Σ_j a_j q_j,T; - entropy_weight H(a)",
    "uniform_blend": f"{_BLEND}, m = mean_j q_j,T",
    "global_gate_blend": f"{_BLEND}, m = Σ_j a_j q_j,T with one a for all rows; - entropy_weight H(a)",
    "as_printed": "BCE(y, o) + kl_weight m log(m/o), o = blend_weight p + (1 - blend_weight) m, m = Σ_j a_j q_j,T",
    "one_teacher": "nothing is trained: one teacher's q",
    "uniform_mix": "nothing is trained: mean_j q_j",
    "logistic_stack": "nothing is distilled: logistic regression of y on the teachers' logits",
}
