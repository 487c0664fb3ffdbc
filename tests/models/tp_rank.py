"""One rank of two: `python -m tests.models.tp_rank RANK FOLDER CHECKPOINT...`, started by test_tensor_parallel.

Generates from each checkpoint, or reads where it is an encoder, and writes what comes of it to FOLDER/RANK.pt.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from quire.parallel.mesh import Mesh
from tests.models.driver import Driver

PROMPTS = [[5, 9, 11, 3, 96, 17, 40, 41, 8, 7, 23], [60, 61, 62], [90, 4, 33, 21, 3, 3, 7]]
ADOPTED = "through-transformers"
"""Part of the names of checkpoints that are to run so even if they have a file."""


def run(path: Path, mesh: Mesh) -> list[tuple[list[int], Tensor]]:
    """Tokens of each sequence, and their logits or, of an encoder, their states and, on the first rank, scores."""
    driver = Driver(path, 4, ["torch_native"], mesh, impl="transformers" if ADOPTED in path.name else "auto")
    if not driver.groups:
        found = driver.read(PROMPTS)
        if mesh.rank == 0:
            found.append(driver.model.scores(found[0][:1]))
        return list(zip([*PROMPTS, PROMPTS[0]], found, strict=False))
    return [(sequence.tokens, sequence.all_logits()) for sequence in driver.generate(PROMPTS, 5)]


def main(rank: int, folder: Path, checkpoints: list[Path]) -> None:
    """Join the other rank and run every checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=240)
    )
    mesh = Mesh(rank, 2, dist.group.WORLD)
    torch.save({path.name: run(path, mesh) for path in checkpoints}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
