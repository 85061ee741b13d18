"""Every loss against a naive version of its formula, and its gradient against finite differences."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from crossdistill.distillation.terms import create_terms
from crossdistill.errors import UserError
from crossdistill.objectives import (
    OBJECTIVES,
    MemoryBank,
    attention_transfer_loss,
    bingo_loss,
    compress_loss,
    cosine_loss,
    cospress_loss,
    create_objective,
    dist_loss,
    dkd_loss,
    infonce_loss,
    kd_loss,
    mse_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    seed_loss,
    simreg_loss,
    smooth_l1_loss,
    time_relations_loss,
    token_matching_loss,
    token_relations_loss,
    unic_loss,
)
from crossdistill.objectives.objective import detach_short_rows
from crossdistill.types import Anchors

BATCH, DIM, NUM_ANCHORS = 4, 5, 6


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(vector):
    length = math.sqrt(sum(float(x) ** 2 for x in vector))
    return [float(x) / length for x in vector]


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def naive_simreg(s, t):
    return mean(sum((x - y) ** 2 for x, y in zip(unit(a), unit(b), strict=True)) for a, b in zip(s, t, strict=True))


def naive_cosine(s, t):
    return mean(1 - dot(unit(a), unit(b)) for a, b in zip(s, t, strict=True))


def naive_smooth_l1(s, t):
    return mean(huber(float(x - y)) for a, b in zip(s, t, strict=True) for x, y in zip(a, b, strict=True))


def naive_distance(s, t):
    pairs = list(itertools.combinations(range(BATCH), 2))
    both = [[math.dist(side[i].tolist(), side[j].tolist()) for i, j in pairs] for side in (s, t)]
    relative = [[d / mean(distances) for d in distances] for distances in both]
    return mean(huber(a - b) for a, b in zip(*relative, strict=True))


def naive_angle(s, t):
    def cosine(side, i, j, k):
        if i in (j, k):
            return 0.0
        return dot(unit(side[j] - side[i]), unit(side[k] - side[i]))

    triples = itertools.product(range(BATCH), repeat=3)
    return mean(huber(cosine(s, *triple) - cosine(t, *triple)) for triple in triples)


def naive_infonce(s, t, anchors, temperature=0.07):
    losses = []
    for a, b in zip(s, t, strict=True):
        logits = [dot(unit(a), unit(b)) / temperature, *(dot(unit(a), anchor) / temperature for anchor in anchors)]
        losses.append(-math.log(math.exp(logits[0]) / sum(map(math.exp, logits))))
    return mean(losses)


def naive_seed(s, t, anchors, tau_s=0.2, tau_t=0.05):
    def soft(query, own, temperature):
        values = [math.exp(dot(unit(query), other) / temperature) for other in (unit(own), *anchors.tolist())]
        return [value / sum(values) for value in values]

    losses = []
    for a, b in zip(s, t, strict=True):
        p_s, p_t = soft(a, b, tau_s), soft(b, b, tau_t)
        losses.append(sum(y * math.log(y / x) for x, y in zip(p_s, p_t, strict=True)))
    return mean(losses)


def naive_bingo(s, t, anchors, temperature=0.2, num_members=2):
    own, bags = [], []
    for a, b in zip(s, t, strict=True):
        weights = [math.exp(dot(unit(a), x) / temperature) for x in (unit(b), *anchors.tolist())]
        nearest = sorted(range(len(anchors)), key=lambda k: -dot(unit(b), anchors[k]))[:num_members]
        own.append(-math.log(weights[0] / sum(weights)))
        bags.append(mean(-math.log(weights[1 + k] / sum(weights)) for k in nearest))
    return mean(own) + mean(bags)


def bingo_sum(**options):
    return sum(bingo_loss(num_members=2, **options))


def naive_mse(s, t):
    return mean(float(x - y) ** 2 for a, b in zip(s, t, strict=True) for x, y in zip(a, b, strict=True))


def naive_tokens(s, t):
    return mean(
        1 - dot(unit(s[(b, slice(None), *place)]), unit(t[(b, slice(None), *place)]))
        for b in range(len(s))
        for place in itertools.product(*map(range, s.shape[2:]))
    )


def naive_attention(s, t):
    def attention(side):
        return unit([sum(float(x) ** 2 for x in side[(slice(None), *p)]) for p in places])

    places = list(itertools.product(*map(range, s.shape[2:])))
    return mean(math.dist(attention(a), attention(b)) for a, b in zip(s, t, strict=True))


def naive_unic(s, t):
    return 0.5 * naive_cosine(s, t) + 0.5 * naive_smooth_l1(s, t)


def naive_relations(s, t, tau=0.07):
    losses = []
    for a, b in zip(s, t, strict=True):
        a, b = ([[float(x) for x in column] for column in side.flatten(1).T] for side in (a, b))
        for i in range(len(a)):
            p_s, p_t = (softened([dot(unit(side[i]), unit(other)) for other in side], tau) for side in (a, b))
            losses.append(kl(p_t, p_s))
    return mean(losses)


def naive_times(s, t):
    def pooled(side):
        return torch.stack([side[..., h, w] for h in range(side.shape[3]) for w in range(side.shape[4])]).mean(dim=0)

    return naive_relations(pooled(s), pooled(t))


def naive_cospress_head(t, h):
    pairs = list(itertools.permutations(range(BATCH), 2))
    losses = []
    for tau in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1):
        p, q = (softened([dot(unit(side[i]), unit(side[j])) for i, j in pairs], tau) for side in (t, h))
        losses.append((kl(p, q) + kl(q, p)) / 2)
    return mean(losses)


def softened(logits, temperature):
    values = [math.exp(float(x) / temperature) for x in logits]
    return [value / sum(values) for value in values]


def kl(p, q):
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))


def naive_kd(s, t, tau=4.0):
    return tau**2 * mean(kl(softened(b, tau), softened(a, tau)) for a, b in zip(s, t, strict=True))


def naive_dkd(s, t, tau=4.0, alpha=1.0, beta=8.0):
    losses = []
    for a, b in zip(s, t, strict=True):
        target = int(b.argmax())
        p_s, p_t = softened(a, tau), softened(b, tau)
        pairs = [(p[target], 1 - p[target]) for p in (p_t, p_s)]
        rests = [[x / (1 - p[target]) for i, x in enumerate(p) if i != target] for p in (p_t, p_s)]
        losses.append(tau**2 * (alpha * kl(*pairs) + beta * kl(*rests)))
    return mean(losses)


def naive_dist_parts(s, t, tau=1.0):
    def correlation(a, b):
        a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
        return dot(unit(a), unit(b))

    p_s, p_t = ([softened(row, tau) for row in side] for side in (s, t))
    columns = [list(zip(*p, strict=True)) for p in (p_s, p_t)]
    between = 1 - mean(correlation(a, b) for a, b in zip(p_s, p_t, strict=True))
    return tau**2 * between, tau**2 * (1 - mean(correlation(a, b) for a, b in zip(*columns, strict=True)))


def naive_dist(s, t):
    return sum(naive_dist_parts(s, t))


def dist_sum(**options):
    return sum(dist_loss(temperature=1.0, **options))


FEATURES, TOKENS = (BATCH, DIM), (2, 3, 2, 2, 2)
ANCHORS = F.normalize(random(NUM_ANCHORS, DIM, seed=9), dim=1)
CASES = {
    "simreg": (simreg_loss, naive_simreg, FEATURES, {}),
    "cosine": (cosine_loss, naive_cosine, FEATURES, {}),
    "smooth-l1": (smooth_l1_loss, naive_smooth_l1, FEATURES, {}),
    "rkd, distance": (rkd_distance_loss, naive_distance, FEATURES, {}),
    "rkd, angle": (rkd_angle_loss, naive_angle, FEATURES, {}),
    "infonce": (infonce_loss, naive_infonce, FEATURES, {"anchors": ANCHORS, "temperature": 0.07}),
    "seed": (
        seed_loss,
        naive_seed,
        FEATURES,
        {"anchors": ANCHORS, "temperature": 0.2, "teacher_temperature": 0.05},
    ),
    "bingo": (bingo_sum, naive_bingo, FEATURES, {"anchors": ANCHORS, "temperature": 0.2}),
    "mse": (mse_loss, naive_mse, FEATURES, {}),
    "kd": (kd_loss, naive_kd, FEATURES, {"temperature": 4.0}),
    "dkd": (dkd_loss, naive_dkd, FEATURES, {"temperature": 4.0, "target_weight": 1.0, "rest_weight": 8.0}),
    "dist": (dist_sum, naive_dist, FEATURES, {}),
    "unic": (unic_loss, naive_unic, FEATURES, {}),
    "token-relations": (token_relations_loss, naive_relations, TOKENS, {"temperature": 0.07}),
    "time-relations": (time_relations_loss, naive_times, TOKENS, {"temperature": 0.07}),
    "token-matching": (token_matching_loss, naive_tokens, TOKENS, {}),
    "attention-transfer": (attention_transfer_loss, naive_attention, TOKENS, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_value__equals_naive_version(case):
    loss, naive, shape, options = CASES[case]
    student, teacher = random(*shape, seed=1), 2 * random(*shape, seed=2)
    given = (ANCHORS,) if "anchors" in options else ()
    assert loss(student=student, teacher=teacher, **options).item() == pytest.approx(
        naive(student, teacher, *given), rel=1e-9
    )


@pytest.mark.parametrize("case", CASES)
def test_gradient__equals_finite_differences_and_is_none_for_the_teacher(case):
    loss, _, shape, options = CASES[case]
    student = random(*shape, seed=3).requires_grad_()
    teacher = random(*shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(student=s, teacher=teacher.detach(), **options), (student,))
    loss(student=student, teacher=teacher, **options).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("infonce", "bingo")])
def test_value__is_zero_for_a_perfect_student(case):
    loss, _, shape, options = CASES[case]
    if case == "seed":
        options = {**options, "temperature": 0.1, "teacher_temperature": 0.1}
    teacher = random(*shape, seed=5)
    student = teacher.clone().requires_grad_()
    value = loss(student=student, teacher=teacher, **options)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9) and student.grad.isfinite().all()


def test_cospress__equals_naive_version_and_trains_head_and_student_apart():
    teacher = random(BATCH, DIM + 2, seed=1).requires_grad_()
    student, reduced = (random(BATCH, DIM, seed=seed).requires_grad_() for seed in (2, 3))
    of_head, of_student = cospress_loss(student=student, teacher=teacher, reduced=reduced)
    assert of_head.item() == pytest.approx(naive_cospress_head(teacher, reduced), rel=1e-9)
    assert of_student.item() == pytest.approx(naive_cosine(student, reduced), rel=1e-9)
    of_student.backward(retain_graph=True)
    assert reduced.grad is None and teacher.grad is None and student.grad.abs().sum() > 0
    student.grad = None
    of_head.backward()
    assert student.grad is None and teacher.grad is None and reduced.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(
        lambda h: cospress_loss(student=student.detach(), teacher=teacher.detach(), reduced=h)[0], (reduced,)
    )


def test_cospress__of_one_sample_has_no_pairs():
    student, reduced = random(1, DIM).requires_grad_(), random(1, DIM, seed=1).requires_grad_()
    of_head, of_student = cospress_loss(student=student, teacher=random(1, 7), reduced=reduced)
    (of_head + of_student).backward()
    assert of_head.item() == 0 and reduced.grad.abs().sum() == 0 and student.grad.isfinite().all()


def test_cospress__is_zero_where_the_head_keeps_the_angles():
    teacher = random(BATCH, DIM, seed=4)
    turn, _ = torch.linalg.qr(random(DIM, DIM, seed=5))
    of_head, of_student = cospress_loss(student=teacher @ turn, teacher=teacher, reduced=3 * teacher @ turn)
    assert of_head.item() == pytest.approx(0, abs=1e-9) and of_student.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective__runs_with_the_declared_inputs_and_leaves_the_bank_unchanged(name):
    objective = create_objective(name)
    student_dim = DIM if objective.needs_teacher_dim else DIM + 2
    own = objective.student_anchors in ("momentum", "live")
    bank = None
    if objective.student_anchors is not None:
        bank = MemoryBank(size=8, teacher_dim=DIM, student_dim=student_dim if own else None)
        keys = random(3, student_dim, seed=6).float() if own else None
        bank.enqueue(Anchors(teacher=random(3, DIM).float(), student=keys, sample_ids=torch.arange(3)))
    before = {} if bank is None else {key: value.clone() for key, value in bank.state_dict().items()}
    grid = (2, 2, 2) if objective.compares == "tokens" else ()
    student = random(BATCH, student_dim, *grid, seed=7).float().requires_grad_()
    teacher = random(BATCH, DIM, *grid, seed=8).float()
    given = torch.arange(BATCH) if objective.compares == "labels" else teacher
    reduced = random(BATCH, student_dim, seed=9).float() if objective.reduces_teacher else None
    output = objective(student=student, teacher=given, bank=bank, reduced=reduced)
    output.loss.backward()
    assert output.loss.shape == () and output.loss.item() > 0 and student.grad.abs().sum() > 0
    assert output.terms and all(not value.requires_grad for value in output.terms.values())
    assert all(torch.equal(value, before[key]) for key, value in (bank.state_dict() if bank else {}).items())


BETWEEN_SAMPLES = {"rkd", "dist", "cospress", "cross-entropy"}


def test_losses_of_samples__are_given_by_all_that_do_not_compare_samples_of_a_batch():
    assert {name for name, objective in OBJECTIVES.items() if not objective.is_per_sample} == BETWEEN_SAMPLES


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - BETWEEN_SAMPLES))
@pytest.mark.parametrize("num_anchors", [0, 6])
def test_loss_of_a_sample__is_that_of_a_batch_of_this_sample(name, num_anchors):
    objective = create_objective(name)
    has_student_side = objective.student_anchors in ("momentum", "live")
    bank = MemoryBank(size=8, teacher_dim=DIM, student_dim=DIM if has_student_side else None)
    if num_anchors:
        keys = random(num_anchors, DIM, seed=6).float()
        ids = torch.arange(num_anchors)
        bank.enqueue(Anchors(teacher=keys.flip(0), student=keys if has_student_side else None, sample_ids=ids))
    grid = (2, 2, 2) if objective.compares == "tokens" else ()
    student = random(BATCH, DIM, *grid, seed=7).float().requires_grad_()
    teacher = random(BATCH, DIM, *grid, seed=8).float()
    own = bank.is_own(torch.arange(BATCH)) if objective.needs_own_anchors else None

    def loss(rows, **options):
        is_own = None if own is None else own[rows]
        return objective(student=student[rows], teacher=teacher[rows], bank=bank, is_own=is_own, **options)

    whole, weights = loss(slice(None), reduction="none"), torch.linspace(-1, 2, BATCH)
    alone = torch.stack([loss(slice(b, b + 1)).loss for b in range(BATCH)])
    torch.testing.assert_close(whole.loss, alone)
    of_mean = loss(slice(None))
    torch.testing.assert_close(whole.loss.mean(), of_mean.loss)
    assert {key: pytest.approx(float(value), rel=1e-5) for key, value in whole.terms.items()} == of_mean.terms
    gradients = [torch.autograd.grad((weights * each).sum(), student)[0] for each in (whole.loss, alone)]
    torch.testing.assert_close(*gradients)
    if num_anchors:
        assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize(("name", "weakest"), [("seed", 0.0), ("infonce", 0.0), ("compress-1q", 0.0), ("bingo", 0.0)])
def test_empty_bank__gives_zero_loss_without_nan(name, weakest):
    """The bank is empty at the first step."""
    bank = MemoryBank(size=8, teacher_dim=DIM, student_dim=None)
    student = random(BATCH, DIM).float().requires_grad_()
    output = create_objective(name)(student=student, teacher=random(BATCH, DIM, seed=1).float(), bank=bank)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(weakest, abs=1e-6) and student.grad.isfinite().all()


def test_create_objective__sets_the_temperatures_of_objectives_that_have_them():
    teacher, student = random(BATCH, DIM).float(), random(BATCH, DIM, seed=1).float()
    bank = MemoryBank(size=8, teacher_dim=DIM, student_dim=None)
    bank.enqueue(Anchors(teacher=random(6, DIM, seed=2).float(), student=None, sample_ids=torch.arange(6)))

    def value(name, **options):
        return create_objective(name, **options)(student=student, teacher=teacher, bank=bank).loss.item()

    for name in ("compress-1q", "infonce", "seed"):
        assert value(name) != value(name, temperature=0.5)
    assert value("seed") != value("seed", teacher_temperature=0.5)
    assert value("compress-1q") == value("compress-1q", temperature=0.04)


NORMALISING = ["simreg", "cosine", "infonce", "seed", "bingo", "compress", "token-matching", "rkd, angle", "dist"]


@pytest.mark.parametrize("case", NORMALISING)
@pytest.mark.parametrize("length", [0.0, 1e-9])
def test_gradient__stays_small_for_rows_near_zero(case, length):
    """Without detach_short_rows the gradient is up to 1e12."""
    loss, _, shape, options = CASES.get(case, (compress_loss, None, FEATURES, {}))
    if case == "compress":
        options = {"student_anchors": ANCHORS, "teacher_anchors": ANCHORS, "temperature": 0.04}
    student, teacher = random(*shape).float(), random(*shape, seed=1).float()
    student[:2] *= length  # rkd: two equal samples; dist: constant probabilities
    options = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    student.requires_grad_()
    value = loss(student=student, teacher=teacher, **options)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all() and value.isfinite()
    assert gradient.abs().max() < 100
    if case != "token-matching":
        assert gradient[2:].abs().max() > 1e-3  # other rows keep their gradient


def test_detach_short_rows__keeps_values_and_the_gradients_of_other_rows():
    rows = torch.cat([random(4, DIM), 1e-5 * random(1, DIM, seed=1), 1e-8 * random(1, DIM, seed=2)]).requires_grad_()
    held = detach_short_rows(rows)
    assert torch.equal(held, rows)
    (gradient,) = torch.autograd.grad(F.normalize(held, dim=1)[:, 0].sum(), rows)
    (plain,) = torch.autograd.grad(F.normalize(rows, dim=1)[:, 0].sum(), rows)
    assert torch.equal(gradient[:5], plain[:5]) and not gradient[5].any() and plain[5].abs().max() > 1e6


def naive_dkd_parts(s, t):
    return naive_dkd(s, t, alpha=1.0, beta=0.0), naive_dkd(s, t, alpha=0.0, beta=1.0)


# Naive parts of an objective, and the papers' weights in the same order: RKD's, DIST's beta and gamma, DKD's alpha and
# beta.
PARTS = {
    "rkd": (lambda s, t: (naive_distance(s, t), naive_angle(s, t)), {"rkd_distance": 25, "rkd_angle": 50}),
    "dist": (naive_dist_parts, {"dist_between_classes": 2, "dist_within_class": 2}),
    "dkd": (naive_dkd_parts, {"target_weight": 1, "rest_weight": 8}),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts__have_the_weights_of_the_paper(name):
    naive_parts, weights = PARTS[name]
    student, teacher = random(*FEATURES), random(*FEATURES, seed=1)
    parts = naive_parts(student, teacher)
    assert min(parts) > 0.01
    objective = create_objective(name)
    field = "parts" if objective.parts else "settings"
    whole = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
    assert objective(student=student, teacher=teacher).loss.item() == pytest.approx(whole, rel=1e-5)
    for (part_name, weight), part in zip(weights.items(), parts, strict=True):
        changed = replace(objective, **{field: {**getattr(objective, field), part_name: weight + 3.0}})
        assert changed(student=student, teacher=teacher).loss.item() == pytest.approx(whole + 3 * part, rel=1e-5)


def test_parts__are_logged_without_their_weights():
    student, teacher = random(*FEATURES), random(*FEATURES, seed=1)
    for name in ("rkd", "dist"):
        terms = create_objective(name)(student=student, teacher=teacher, bank=None).terms
        assert [float(value) for value in terms.values()] == pytest.approx(PARTS[name][0](student, teacher), rel=1e-5)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_dist__scales_with_the_square_of_the_temperature(tau):
    student, teacher = random(*FEATURES), random(*FEATURES, seed=1)
    between, within = naive_dist_parts(student, teacher, tau)
    output = create_objective("dist", temperature=tau)(student=student, teacher=teacher, bank=None)
    assert output.loss.item() == pytest.approx(2 * between + 2 * within, rel=1e-5)


def test_dkd__applies_given_weights():
    student, teacher = random(*FEATURES), random(*FEATURES, seed=1)
    loss = dkd_loss(student=student, teacher=teacher, temperature=2.0, target_weight=0.3, rest_weight=1.7)
    assert loss.item() == pytest.approx(naive_dkd(student, teacher, tau=2.0, alpha=0.3, beta=1.7), rel=1e-9)


def test_rkd__is_zero_for_a_batch_of_one():
    output = create_objective("rkd")(student=torch.ones(1, 3, requires_grad=True), teacher=torch.ones(1, 4), bank=None)
    output.loss.backward()
    assert output.loss.item() == 0


def test_cross_entropy__gradient_equals_probabilities_minus_labels():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 3, 3, 1])
    create_objective("cross-entropy")(student=logits, teacher=labels, bank=None).loss.backward()
    expected = (logits.detach().softmax(dim=1) - torch.nn.functional.one_hot(labels, 5)) / 4
    torch.testing.assert_close(logits.grad, expected)


def test_cross_entropy__equals_closed_form_and_needs_a_second_objective():
    logits, labels = random(BATCH, DIM).float(), torch.tensor([0, 4, 2, 1])
    expected = mean(-math.log(softened(row, 1.0)[label]) for row, label in zip(logits, labels, strict=True))
    output = create_objective("cross-entropy")(student=logits, teacher=labels, bank=None)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert [term.name for term in create_terms(["cross-entropy", "mse:50"])] == ["cross-entropy", "mse"]
    with pytest.raises(UserError, match="uses labels alone: add one that learns from the teacher"):
        create_terms(["cross-entropy"])


@pytest.mark.parametrize("name", ["infonce", "bingo"])
def test_own_anchors__are_neither_negatives_nor_members(name):
    """Anchors of the samples themselves do not change the loss."""
    student, teacher = random(BATCH, DIM).float(), random(BATCH, DIM, seed=1).float()
    others, objective = random(3, DIM, seed=2).float(), create_objective(name)
    losses = []
    for num_own in (0, 1):
        bank = MemoryBank(size=16, teacher_dim=DIM, student_dim=None)
        ids = torch.tensor([0] * num_own + [10, 11, 12])
        anchors = torch.cat([teacher[:num_own], others])
        bank.enqueue(Anchors(teacher=anchors, student=None, sample_ids=ids))
        query = student[:1].clone().requires_grad_()
        is_own = bank.is_own(torch.tensor([0]))
        assert is_own.sum() == num_own
        loss = objective(student=query, teacher=teacher[:1], bank=bank, is_own=is_own).loss
        loss.backward()
        assert query.grad.isfinite().all()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
