"""CompRess's experiment on pictures, at a size that one GPU or a patient CPU can train: Caltech-101.

An EfficientNet-Lite2 with ImageNet weights teaches AlexNet, ResNet-18 and MobileNetV2, which start from random weights
and see no label. Each is compared with the same network trained with labels, and with an untrained one. Pictures of
--pile help the students without labels alone. It is also an example of a training loop of one's own: all pictures are
in memory, crops are cut on the device, and the teacher's features of K crops of every picture are computed once.
``reproduce_caltech101.sh`` does the same experiment with the commands of the package.

    python scripts/reproduce_caltech101.py PICTURES OUT --teacher-weights tf_efficientnet_lite2.safetensors

PICTURES holds one folder of JPEGs per class, ``train.txt`` and ``test.txt``. Finished rows are in OUT/rows.jsonl and
are skipped, so that an interrupted script can be started again.

Shapes: N pictures, K stored crops of each picture, B batch, S side in pixels, D features.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.ops import roi_align

import crossdistill as cd
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.protocols import apply_protocols
from crossdistill.evaluation.settings import ProtocolSettings, Shots

TEACHER, TEACHER_DIM, TEACHER_PX = "tf_efficientnet_lite2", 1280, 260
TEACHER_MEAN, TEACHER_STD = 127 / 255, 128 / 255
SIZE_PX = {"image_alexnet": 96, "image_alexnet_no_dropout": 96, "image_resnet18": 64, "image_mobilenet_v2": 64}
LEARNING_RATE = dict.fromkeys(SIZE_PX, 1e-3) | {"image_alexnet": 5e-4, "image_alexnet_no_dropout": 5e-4}
# Networks with labels, and as which the paper's authors distil them.
STUDENTS = {
    "image_resnet18": "image_resnet18",
    "image_mobilenet_v2": "image_mobilenet_v2",
    "image_alexnet": "image_alexnet_no_dropout",
}
BATCH_SIZE, BANK_SIZE, WEIGHT_DECAY, WARMUP_EPOCHS, HELD_OUT = 256, 4096, 0.05, 5, 0.15
LONGEST_PX = 168
"""Longest side of a picture in memory. What is longer than 3:2 loses its ends; the short side is 112 pixels."""
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Row:
    """One student of the tables."""

    student: str
    learns_from: str
    """``labels``, ``nothing``, or the objectives joined by ``+``."""
    epochs: int = 0
    seed: int = 0
    is_held_out: bool = False
    """Whether a share of the training pictures takes the place of the test pictures."""
    with_pile: bool = False
    """Whether the student sees the pictures of --pile as well."""

    @property
    def name(self) -> str:
        """Everything that differs from the defaults; two rows of one name are the same row."""
        changed = {key: value for key, value in asdict(self).items() if value != Row.__dataclass_fields__[key].default}
        return " ".join(f"{key}={value}" for key, value in changed.items())


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures, each in the upper left corner of a square."""

    values: Tensor
    """[N, 3, LONGEST_PX, LONGEST_PX] uint8."""
    sizes: Tensor
    """[N, 2] width and height of each picture in pixels."""
    labels: Tensor
    """[N] int64; -1 without a label."""

    @staticmethod
    def take(tensors: dict[str, Tensor], part: str) -> Pictures:
        """Take a part of what ``prepare`` wrote."""
        return Pictures(*(tensors[f"{part}.{key}"] for key in ("values", "sizes", "labels")))

    def join(self, other: Pictures) -> Pictures:
        """Put other pictures behind these."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pictures(*(torch.cat(pair) for pair in pairs))

    def select(self, rows: Tensor) -> Pictures:
        """Take some pictures."""
        return Pictures(self.values[rows], self.sizes[rows], self.labels[rows])

    def to(self, device: torch.device) -> Pictures:
        """Copy to a device."""
        return Pictures(self.values.to(device), self.sizes.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


def read_pictures(paths: list[Path], labels: list[int]) -> Pictures:
    """Decode pictures."""
    values = torch.zeros(len(paths), 3, LONGEST_PX, LONGEST_PX, dtype=torch.uint8)
    sizes = torch.zeros(len(paths), 2)

    def read(index: int) -> None:
        picture = decode_jpeg(read_file(str(paths[index])), ImageReadMode.RGB)
        height, width = picture.shape[1:]
        top, left = max(0, height - LONGEST_PX) // 2, max(0, width - LONGEST_PX) // 2
        picture = picture[:, top : top + LONGEST_PX, left : left + LONGEST_PX]
        height, width = picture.shape[1:]
        values[index, :, :height, :width] = picture
        sizes[index] = torch.tensor([width, height])

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(paths))))
    return Pictures(values, sizes, torch.tensor(labels, dtype=torch.int64))


def find_pictures(arguments: argparse.Namespace) -> dict[str, Pictures]:
    """Decode the training and test pictures, and those of the pile."""
    lists = {part: (arguments.pictures / f"{part}.txt").read_text().split() for part in ("train", "test")}
    classes = sorted({name.split("/")[0] for name in lists["train"]})
    found = {
        part: read_pictures(
            [arguments.pictures / name for name in names], [classes.index(n.split("/")[0]) for n in names]
        )
        for part, names in lists.items()
    }
    pile = sorted(arguments.pile.rglob("*.[jJ][pP]*[gG]")) if arguments.pile else []
    return found | {"pile": read_pictures(pile, [-1] * len(pile))}


def draw_boxes(sizes: Tensor, *, area_min: float, generator: torch.Generator) -> Tensor:
    """Draw a random-resized crop of each picture: [N, 5] of left, top, right, bottom in pixels, and 1 if mirrored.

    A crop that does not fit is made as large as the picture allows.
    """
    width, height = sizes.T
    random = torch.rand(5, len(sizes), generator=generator)
    area = width * height * (area_min + (1 - area_min) * random[0])
    ratio = torch.exp((2 * random[1] - 1) * math.log(4 / 3))
    crop_width = torch.minimum((area * ratio).sqrt(), width)
    crop_height = torch.minimum((area / ratio).sqrt(), height)
    left, top = (width - crop_width) * random[2], (height - crop_height) * random[3]
    return torch.stack([left, top, left + crop_width, top + crop_height, (random[4] < 0.5).float()], dim=1)


def centre_boxes(sizes: Tensor, *, fraction: float) -> Tensor:
    """Return the centre crop of each picture, as ``draw_boxes`` does; the side is a share of the shorter side."""
    width, height = sizes.T
    half = torch.minimum(width, height) * fraction / 2
    zeros = torch.zeros_like(width)
    return torch.stack([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half, zeros], dim=1)


def crop(values: Tensor, boxes: Tensor, side_px: int) -> Tensor:
    """Cut boxes [B, 5] out of pictures [B, 3, H, W]: [B, 3, S, S] float in [0, 1]; each pixel is a mean of samples."""
    index = torch.arange(len(values), device=values.device, dtype=torch.float32)
    regions = torch.cat([index[:, None], boxes[:, :4]], dim=1)
    cut = roi_align(values.float() / 255, regions, side_px, sampling_ratio=2, aligned=True)
    return torch.where(boxes[:, 4, None, None, None] > 0, cut.flip(3), cut)


@torch.no_grad()
def teacher_features(network: nn.Module, pictures: Pictures, boxes: Tensor, batch_size: int = 512) -> Tensor:
    """Embed one crop of each picture: [N, D] float16."""
    rows = []
    for index in torch.arange(len(pictures)).split(batch_size):
        cut = (crop(pictures.values[index], boxes[index], TEACHER_PX) - TEACHER_MEAN) / TEACHER_STD
        with torch.autocast(cut.device.type, torch.bfloat16, enabled=cut.is_cuda):
            rows.append(network(cut.contiguous(memory_format=torch.channels_last)).half())
    return torch.cat(rows)


def create_teacher(weights: Path, device: torch.device) -> nn.Module:
    """Build timm's network without its classifier."""
    network = timm.create_model(TEACHER, num_classes=0)
    state = {name: value.float() for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    network.load_state_dict(state)
    return network.to(device).eval().to(memory_format=torch.channels_last)


def prepare(arguments: argparse.Namespace, device: torch.device) -> None:
    """Decode the pictures and embed K crops of each with the teacher; the result is kept in the cache folder."""
    cache: Path = arguments.cache
    pile = f"{arguments.pile or ''}\n"
    if (cache / "teacher.safetensors").is_file():
        if (cache / "pile.txt").read_text() != pile:
            raise SystemExit(f"{cache} was made with another --pile: give that, or another --cache")
        return
    cache.mkdir(parents=True, exist_ok=True)
    parts = find_pictures(arguments)
    network = create_teacher(arguments.teacher_weights, device)
    features: dict[str, Tensor] = {}
    for part in ("train", "test"):
        centre = centre_boxes(parts[part].sizes, fraction=1.0).to(device)
        features[f"{part}.centre"] = teacher_features(network, parts[part].to(device), centre).cpu()
    seen, generator = parts["train"].join(parts["pile"]), torch.Generator().manual_seed(0)
    boxes = [draw_boxes(seen.sizes, area_min=arguments.area_min, generator=generator) for _ in range(arguments.crops)]
    on_device = seen.to(device)
    crops = [teacher_features(network, on_device, each.to(device)).cpu() for each in boxes]
    save_file(
        {f"{part}.{key}": value for part, pictures in parts.items() for key, value in vars(pictures).items()},
        cache / "pictures.safetensors",
    )
    (cache / "pile.txt").write_text(pile)
    save_file({**features, "boxes": torch.stack(boxes), "crops": torch.stack(crops)}, cache / "teacher.safetensors")
    results = evaluate(lambda part: features[f"{part}.centre"], parts["train"], parts["test"], is_full=True)
    write_row(arguments.out, {**asdict(Row(TEACHER, "ImageNet's labels")), "results": results})


@dataclass(frozen=True)
class Material:
    """Everything that rows share, on the device."""

    train: Pictures
    test: Pictures
    seen: Pictures
    """Pictures that the student learns from: the training pictures, then those of the pile."""
    boxes: Tensor
    """[K, N, 5] stored crops of ``seen``."""
    targets: Tensor
    """[K, N, D] the teacher's features of the crops."""

    @staticmethod
    def load(cache: Path, device: torch.device) -> Material:
        """Read what ``prepare`` wrote."""
        stored = load_file(cache / "pictures.safetensors", device=str(device))
        teacher = load_file(cache / "teacher.safetensors", device=str(device))
        train, test, pile = (Pictures.take(stored, part) for part in ("train", "test", "pile"))
        return Material(train, test, train.join(pile), teacher["boxes"], teacher["crops"])

    def without_pile(self) -> Material:
        """Leave the training pictures alone."""
        num = len(self.train)
        return Material(self.train, self.test, self.train, self.boxes[:, :num], self.targets[:, :num])

    def held_out(self, seed: int) -> Material:
        """Draw a share of the training pictures to take the place of the test pictures."""
        generator = torch.Generator().manual_seed(1000 + seed)
        order = torch.randperm(len(self.train), generator=generator).to(self.boxes.device)
        held, rows = order.tensor_split([round(HELD_OUT * len(order))])
        train, held_pictures = self.train.select(rows), self.train.select(held)
        return Material(train, held_pictures, train, self.boxes[:, rows], self.targets[:, rows])


def batches(num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the pictures of an epoch in random order, in batches of one size."""
    size = min(BATCH_SIZE, num)
    order = torch.randperm(num, generator=generator)
    yield from order[: num - num % size].split(size)


def learning_rate(step: int, num_steps: int, num_warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine."""
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def create_task(row: Row, student: cd.Encoder) -> cd.Distiller:
    """Build the distiller of a row. Its teacher is the identity: the features are stored."""
    terms = cd.create_terms(row.learns_from.split("+"))
    return cd.Distiller(
        student=student, teachers=nn.Identity(), teacher_dim=TEACHER_DIM, objective=terms, bank_size=BANK_SIZE
    )


def train(row: Row, student: cd.Encoder, material: Material) -> dict[str, Any]:
    """Train a student with labels or with the teacher's stored features; return facts about the training."""
    device = material.boxes.device
    pictures, generator = material.seen, torch.Generator().manual_seed(row.seed)
    classifier = nn.Linear(student.embed_dim, int(material.test.labels.max()) + 1).to(device)
    execution = cd.Execution.choose(student)
    task = None
    if row.learns_from == "labels":
        trained = [*student.parameters(), *classifier.parameters()]
    else:
        task = create_task(row, student).train()
        trained = list(task.parameters())
    decayed = [value for value in trained if value.ndim > 1]
    others = [value for value in trained if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    peak = LEARNING_RATE[row.student]
    optimizer = torch.optim.AdamW(groups, lr=peak, fused=True)
    num_batches = max(1, len(pictures) // BATCH_SIZE)
    mean, std = MEAN.to(device)[:, None, None], STD.to(device)[:, None, None]
    started, step, losses = time.monotonic(), 0, []
    student.train()
    for _ in range(row.epochs):
        for rows in batches(len(pictures), generator):
            rows = rows.to(device)
            augmentation = torch.randint(len(material.boxes), (len(rows),), generator=generator).to(device)
            cut = crop(pictures.values[rows], material.boxes[augmentation, rows], SIZE_PX[row.student])
            clip = ((cut - mean) / std).unsqueeze(2)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, row.epochs * num_batches, WARMUP_EPOCHS * num_batches, peak)
            if task is None:
                logits = classifier(execution.embed(student, clip))
                loss = F.cross_entropy(logits, pictures.labels[rows])
            else:
                output = task(clip, material.targets[augmentation, rows].float(), sample_ids=rows)
                loss = output.loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if task is not None:
                task.after_step()
            step += 1
        losses.append(loss.detach())
    facts = {"seconds": round(time.monotonic() - started, 1), "losses": [round(float(each), 4) for each in losses]}
    if row.learns_from == "labels":
        facts["classifier_top1"] = accuracy(student, classifier, material.test)
    return facts


@torch.no_grad()
def embed(student: cd.Encoder, pictures: Pictures) -> Tensor:
    """Embed the centre crops: [N, D] float32."""
    student.eval()
    device = pictures.values.device
    boxes = centre_boxes(pictures.sizes, fraction=1.0)
    mean, std = MEAN.to(device)[:, None, None], STD.to(device)[:, None, None]
    rows = []
    for index in torch.arange(len(pictures), device=device).split(512):
        cut = crop(pictures.values[index], boxes[index], student.view.size_px)
        rows.append(student(((cut - mean) / std).unsqueeze(2)).float())
    return torch.cat(rows)


def accuracy(student: cd.Encoder, classifier: nn.Linear, pictures: Pictures) -> float:
    """Top-1 of the classifier that a supervised network was trained with."""
    return float((classifier(embed(student, pictures)).argmax(1) == pictures.labels).float().mean())


def evaluate(embedder: Callable[[str], Tensor], train: Pictures, test: Pictures, *, is_full: bool) -> dict[str, Any]:
    """Apply the protocols of the paper to the features that an encoder gives of ``train`` and ``test``."""
    split = EmbeddedSplit.from_tensors(
        train_features=embedder("train").float(),
        train_labels=train.labels,
        test_features=embedder("test").float(),
        test_labels=test.labels,
        num_classes=int(train.labels.max()) + 1,
    )
    settings = ProtocolSettings(ks=(1,), shots=tuple(Shots(number=number) for number in (1, 5, 10)))
    protocols = ("knn", "linear", "cluster", "lowshot") if is_full else ("knn", "linear")
    results: dict[str, Any] = {}
    for result in apply_protocols(split, protocols, settings):
        hits = result.outcome.hits["top1"] if result.outcome is not None else None
        results[result.protocol] = {"top1": round(result.top1, 5)}
        if hits is not None and result.protocol in ("1-nn", "linear"):
            bits = "".join("1" if hit else "0" for hit in hits.tolist())
            results[result.protocol]["hits"] = f"{int(bits, 2):x}"
    return results


def run_row(row: Row, material: Material) -> dict[str, Any]:
    """Train and evaluate one row."""
    started = time.monotonic()
    torch.manual_seed(row.seed)
    device = material.boxes.device
    material = material if row.with_pile else material.without_pile()
    material = material.held_out(row.seed) if row.is_held_out else material
    student = cd.create_encoder(row.student, size_px=SIZE_PX[row.student]).to(device)
    facts = train(row, student, material) if row.epochs else {}
    results = evaluate(
        lambda part: embed(student, getattr(material, part)),
        material.train,
        material.test,
        is_full=not row.is_held_out,
    )
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    seconds = round(time.monotonic() - started, 1)
    return {**asdict(row), **facts, "results": results, "machine": machine, "all_seconds": seconds}


def rows_of(group: str) -> list[Row]:
    """List the rows of one group, the most important first."""
    best = "compress-2q-live+simreg"
    if group == "main":
        rows = [Row(name, "nothing") for name in SIZE_PX]
        for seed in (0, 1, 2):
            rows += [Row(name, best, 100, seed, with_pile=True) for name in STUDENTS.values()]
            rows += [Row(name, best, 300, seed) for name in STUDENTS.values()]
            rows += [Row(name, "labels", 80, seed) for name in STUDENTS]
        return rows
    if group == "convergence":
        return [Row(name, "labels", epochs, is_held_out=True) for epochs in (80, 160) for name in STUDENTS]
    if group == "debug":
        rows = [Row(name, best, 1, with_pile=with_pile) for name in STUDENTS.values() for with_pile in (False, True)]
        return [*rows, *(Row(name, "labels", 1, is_held_out=held) for name in STUDENTS for held in (False, True))]
    raise SystemExit(f"--rows {group} is unknown: choose main, convergence or debug")


def work(arguments: argparse.Namespace, jobs: Any) -> None:
    """Take rows from the queue until it is empty or the time is over, and append each result to the file of rows."""
    torch.set_num_threads(max(1, (torch.multiprocessing.cpu_count() // arguments.jobs)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    material = Material.load(arguments.cache, device)
    while (row := jobs.get()) is not None and time.time() < arguments.deadline:
        write_row(arguments.out, run_row(row, material))


def write_row(out: Path, row: dict[str, Any]) -> None:
    """Append the result of a row to the file of rows, and print it."""
    with (out / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    scores = {name: each["top1"] for name, each in row["results"].items()}
    pile = " with the pile" if row["with_pile"] else ""
    print(f"{row['student']} from {row['learns_from']}{pile}, seed {row['seed']}: {scores}", flush=True)


def main() -> None:
    """Parse the command line, prepare the teacher's features, and train the missing rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--pile", type=Path, default=None, help="folder of JPEG files without labels")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the stored features; OUT/cache by default")
    parser.add_argument("--crops", type=int, default=20, help="K, number of stored crops of a picture")
    parser.add_argument("--area-min", type=float, default=0.2)
    parser.add_argument("--rows", nargs="+", default=["main"], help="main, convergence, debug")
    parser.add_argument("--jobs", type=int, default=1, help="number of rows that train side by side")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which no new row starts")
    arguments = parser.parse_args()
    arguments.deadline = time.time() + arguments.stop_after
    arguments.cache = arguments.cache or arguments.out / "cache"
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    prepare(arguments, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"teacher's features are stored after {time.monotonic() - started:.0f} s", flush=True)
    path = arguments.out / "rows.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    finished = {Row(**{key: each[key] for key in Row.__dataclass_fields__}).name for each in done}
    context = mp.get_context("spawn")
    jobs = context.Queue()
    for group in arguments.rows:
        for row in rows_of(group):
            if row.name not in finished and (arguments.pile or not row.with_pile):
                jobs.put(row)
    for _ in range(arguments.jobs):
        jobs.put(None)  # the end, for each process
    workers = [context.Process(target=work, args=(arguments, jobs)) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
