"""A whole trainable of one's own: a small transformer that reads sentences, with distillation token by token.

The sentences are made here, from the rows of the study's table: a feature that is remarkable becomes a word, such as
"feature 7 is high", all others are left out, and so sentences differ in length and are padded. At every word the
transformer says what the sentence's class is; the sentence's logits are the mean over its words. Student and teacher
are both such transformers, and the teacher, the larger one, is trained here too, on the rows to fit on and no others.

Token-level distillation compares the two at every word: Kim, Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016,
arXiv 1606.07947, section 3.1 (word-level), here with a temperature and for classification. Padding says nothing and is
masked out: of the attention, of the mean, and of the distillation.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from distune import Outputs, Term, losses
from trainables.artefacts import build_once
from trainables.audit import BATCH, audit, audit_batches
from trainables.context import Context, EpochResult, TrialConfig
from trainables.datasets import Scaling
from trainables.evaluation import validation_metrics
from trainables.own_variants import variant_of
from trainables.packing import StackedAdam

BEGIN = 0  # the word that every sentence begins with, so that none is empty; where padding stands does not matter
REMARKABLE = 0.5  # standard deviations from the mean
STUDENT, TEACHER = {"width": 16, "depth": 1}, {"width": 32, "depth": 2}
TEACHER_EPOCHS, TEACHER_BATCH, TEACHER_RATE = 15, 64, 3e-3


def token_kd(student: Outputs, teacher: Outputs, labels: Tensor, hp: dict) -> dict[str, Term]:
    """Cross-entropy + token_weight x mean over the words of T² KL(teacher || student).

    features["tokens"]: (..., batch, words, classes), logits at every word; masks["tokens"]: (..., batch, words), 1 at
    words and 0 at padding.
    """
    mask = student.masks["tokens"]
    of_words = losses.hinton_kd(student.features["tokens"], teacher.features["tokens"], hp["temperature"])
    return {
        "ce": Term(losses.cross_entropy(student.logits, labels), 1.0),
        "token_kd": Term((mask * of_words).sum(dim=-1) / mask.sum(dim=-1), hp["token_weight"]),
    }


def sentences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised features (n, features) -> words (n, 1 + features), whole numbers, and mask (n, 1 + features)."""
    said = x.abs() > REMARKABLE
    words = 1 + 2 * torch.arange(x.shape[1], device=x.device) + (x > 0).long()
    order = said.long().argsort(dim=1, descending=True, stable=True)  # what is said first, padding last
    words, mask = words.gather(1, order), said.gather(1, order)
    begin = torch.full_like(words[:, :1], BEGIN)
    return torch.cat([begin, words * mask], dim=1), torch.cat([torch.ones_like(begin), mask.long()], dim=1)


class Transformer(nn.Module):
    """Words (n, words) and mask (n, words) -> logits at every word (n, words, classes), where the mask is 1."""

    def __init__(self, features: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1 + 2 * features, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(words), src_key_padding_mask=mask == 0)
        logits: Tensor = self.head(hidden)
        return logits


def outputs(model: Transformer, words: Tensor, mask: Tensor) -> Outputs:
    """What a variant is given: the sentence's logits, and those of its words with their mask."""
    tokens, weight = model(words, mask), mask.to(torch.get_default_dtype())
    logits = (weight.unsqueeze(-1) * tokens).sum(dim=1) / weight.sum(dim=1, keepdim=True)
    return Outputs(logits, {"tokens": tokens}, masks={"tokens": weight})


def train(config: TrialConfig, context: Context) -> Iterator[EpochResult]:
    """Train the seeds of a trial one after another, epoch by epoch; every result is complete."""
    if config.teacher_rows not in ("none", "own"):
        raise ValueError(f"teacher_rows must be none or own, got {config.teacher_rows}")
    scaling = Scaling.of(context.fit)

    def read(x) -> tuple[Tensor, Tensor]:
        return sentences(torch.from_numpy(scaling(x)).to(context.device, torch.get_default_dtype()))

    words, mask = read(context.fit.x)
    labels = torch.from_numpy(context.fit.y).to(context.device)
    teacher = None if config.teacher_rows == "none" else _teacher(context, words, mask, labels)
    seeds = [_Seed(config, context, replicate, words, mask, labels, teacher) for replicate in config.replicates]
    for place, seed in enumerate(seeds):
        if context.resume:
            seed.load({k.removeprefix(f"{place}."): v for k, v in context.resume.items() if k.startswith(f"{place}.")})

    def state() -> dict[str, Tensor]:
        return {f"{place}.{k}": v for place, seed in enumerate(seeds) for k, v in seed.state().items()}

    def predict(x) -> Tensor:
        return torch.stack([seed.logits(*read(x)) for seed in seeds])

    parameters = sum(p.numel() for p in seeds[0].model.parameters())
    audits = {0: seeds[0].audit()} if context.resume_epoch == 0 else {}
    if config.epochs == 0:
        yield EpochResult(0, {}, parameters, audits, False, state, predict)
    for epoch in range(context.resume_epoch + 1, config.epochs + 1):
        each = [seed.train_epoch(epoch) for seed in seeds]
        metrics = {f"loss_{name}": [values[name] for values in each] for name in each[0]}
        diverged = not all(torch.isfinite(torch.tensor(values)).all() for values in metrics.values())
        if context.validation is not None and epoch >= config.evaluate_from and not diverged:
            metrics |= validation_metrics(predict(context.validation.x), torch.from_numpy(context.validation.y))
        if epoch in config.audit_at and not diverged:
            audits[epoch] = seeds[0].audit()
        yield EpochResult(epoch, metrics, parameters, audits, diverged, state, predict)
        audits = {}
        if diverged:
            return


class _Seed:
    """One student, its optimiser and its random streams."""

    def __init__(self, config, context, replicate, words, mask, labels, teacher) -> None:
        self.config, self.streams, self.replicate = config, context.streams, replicate
        self.words, self.mask, self.labels, self.teacher = words, mask, labels, teacher
        self.variant = variant_of(config.variant)
        self.model = _initialised(STUDENT, words, context, context.streams.generator("init", replicate))
        self.adam = StackedAdam([*self.model.parameters()], config.hp["learning_rate"], config.hp["weight_decay"])

    def terms(self, rows) -> tuple[dict[str, Term], Outputs]:
        student = outputs(self.model, self.words[rows], self.mask[rows])
        shown = None
        if self.teacher is not None:
            shown = Outputs(self.teacher.logits[rows], {"tokens": self.teacher.features["tokens"][rows]})
        return self.variant(student, shown, self.labels[rows], self.config.hp), student

    def train_epoch(self, epoch: int) -> dict[str, float]:
        generator, sums = self.streams.generator("order", self.replicate, epoch), {}
        for rows in torch.randperm(len(self.labels), generator=generator).split(int(self.config.hp["batch_size"])):
            terms, _ = self.terms(rows.to(self.labels.device))
            total = sum(term.weight * term.value for term in terms.values()).mean()
            self.adam.step(torch.autograd.grad(total, [*self.model.parameters()]))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.value.detach().sum())
        return {name: total / len(self.labels) for name, total in sums.items()}

    def audit(self):
        def of_batch(number: int):
            rows = slice(number * BATCH, (number + 1) * BATCH)
            terms, student = self.terms(rows)
            packed = {k: Term(t.value.unsqueeze(0), t.weight) for k, t in terms.items()}
            ce = losses.cross_entropy(student.logits, self.labels[rows]).unsqueeze(0)
            return audit(packed, ce, [*self.model.parameters()])

        return audit_batches(of_batch, len(self.labels), self.config.dead_terms)

    @torch.no_grad()
    def logits(self, words: Tensor, mask: Tensor) -> Tensor:
        parts = zip(words.split(2048), mask.split(2048), strict=True)
        return torch.cat([outputs(self.model, w, m).logits for w, m in parts])

    def state(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self._everything().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._everything().items():
                tensor.copy_(state[name])

    def _everything(self) -> dict[str, Tensor]:
        model = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        return model | {f"optimiser.{k}": v for k, v in self.adam.state().items()}


def _initialised(size: dict[str, int], words: Tensor, context: Context, generator: torch.Generator) -> Transformer:
    """Drawn from this generator alone, whatever torch's global one stands at."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        model = Transformer(words.shape[1] - 1, context.classes, **size)
    return model.to(context.device, torch.get_default_dtype())


def _teacher(context: Context, words: Tensor, mask: Tensor, labels: Tensor) -> Outputs:
    """What the larger transformer says of the rows to fit on, which it was trained on: built once, then from the cache.

    Its time is in no ledger: a teacher that is the trainable's own business has none of its own there.
    """
    generator = context.streams.generator("token teacher", 0)
    model = _initialised(TEACHER, words, context, generator)

    def build() -> tuple[dict[str, Tensor], dict]:
        adam = torch.optim.AdamW(model.parameters(), TEACHER_RATE)
        for _ in range(TEACHER_EPOCHS):
            for rows in torch.randperm(len(labels), generator=generator).to(labels.device).split(TEACHER_BATCH):
                loss = losses.cross_entropy(outputs(model, words[rows], mask[rows]).logits, labels[rows]).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
        return {k: v.detach().cpu() for k, v in model.state_dict().items()}, {}

    recipe = {**TEACHER, "epochs": TEACHER_EPOCHS, "batch": TEACHER_BATCH, "rate": TEACHER_RATE}
    recipe |= {"study": context.streams.study, "seed": context.streams.seed, "dtype": str(torch.get_default_dtype())}
    model.load_state_dict(build_once("token-teachers", recipe, context.fit.fingerprints(), build).tensors)
    with torch.no_grad():
        return outputs(model, words, mask)
