"""Time exact k-nearest-neighbour search against faiss ``IndexFlatIP`` and a plain brute force, on the CPU.

All three find the same neighbours of the same unit vectors with the same number of threads; repeats are interleaved
and medians are compared. Both wall clock and processor time are shown: on a machine that is busy with other work only
the second says much. Ours is timed with all that a call does: checks, normalisation, exact similarities.

Needs faiss, which crossdistill itself does not: ``pip install faiss-cpu``.

    python scripts/bench_knn.py
    python scripts/bench_knn.py --threads 1 --repeats 9
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from crossdistill.evaluation.neighbours import nearest_neighbours, unit_rows
from crossdistill.utils.console import print_table


def parse_arguments() -> argparse.Namespace:
    """Read the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-gallery", type=int, default=50_000)
    parser.add_argument("--num-queries", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--num-classes", type=int, default=101)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def plain_brute_force(queries_bd: Tensor, gallery_nd: Tensor, k: int) -> Tensor:
    """What everybody writes: one matrix product per chunk of queries and a top-k of it."""
    return torch.cat([(chunk @ gallery_nd.T).topk(k, dim=1).indices for chunk in queries_bd.split(256)])


def main() -> None:
    """Measure and print."""
    import faiss  # only here: bench_gpu.py takes the plain search from this file

    args = parse_arguments()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    torch.manual_seed(0)
    gallery = unit_rows(torch.randn(args.num_gallery, args.dim))
    queries = unit_rows(torch.randn(args.num_queries, args.dim))
    labels = torch.randint(0, args.num_classes, (args.num_gallery,))
    index = faiss.IndexFlatIP(args.dim)
    index.add(gallery.numpy())

    found = nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=args.k).indices_bk
    agreement = (torch.from_numpy(index.search(queries.numpy(), args.k)[1]) == found).double().mean().item()

    rivals: dict[str, Callable[[], object]] = {
        "faiss IndexFlatIP": lambda: index.search(queries.numpy(), args.k),
        "plain brute force": lambda: plain_brute_force(queries, gallery, args.k),
        "matrix products alone": lambda: [queries @ part.T for part in gallery.split(4_096)],
        "crossdistill": lambda: nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=args.k),
        "crossdistill, with class similarities": lambda: nearest_neighbours(
            queries_bd=queries,
            gallery_nd=gallery,
            k=args.k,
            gallery_labels_n=labels,
            num_classes=args.num_classes,
        ),
    }
    wall_seconds: dict[str, list[float]] = {name: [] for name in rivals}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(args.repeats):
        for name, run in rivals.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall_seconds[name].append(time.perf_counter() - wall)
            cpu_seconds[name].append(time.process_time() - cpu)

    wall_medians = {name: statistics.median(times) for name, times in wall_seconds.items()}
    cpu_medians = {name: statistics.median(times) for name, times in cpu_seconds.items()}
    print_table(
        f"{args.num_queries} queries, {args.num_gallery} × {args.dim} gallery, k {args.k}, {args.threads} threads",
        ["", "wall s", "fastest s", "faiss ÷ this", "CPU s", "faiss ÷ this"],
        [
            [
                name,
                f"{wall_medians[name]:.3f}",
                f"{min(wall_seconds[name]):.3f}",
                f"{wall_medians['faiss IndexFlatIP'] / wall_medians[name]:.2f}",
                f"{cpu_medians[name]:.3f}",
                f"{cpu_medians['faiss IndexFlatIP'] / cpu_medians[name]:.2f}",
            ]
            for name in rivals
        ],
    )
    print(f"same neighbours in the same order as faiss: {agreement:.4%}")


if __name__ == "__main__":
    main()
