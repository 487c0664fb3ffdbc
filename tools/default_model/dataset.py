"""Tokens on disk and batches of them: windows of the books mixed with chats, and the validation windows.

A batch is a function of the seed and the step alone, so a resumed run sees what an unbroken one would have seen.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from default_model.conversations import ChatMix, cut_conversations
from default_model.corpus import encode, encode_books, read_books, split_books, train_tokenizer
from default_model.plan import Plan

_IGNORED = -100


def prepare(archive: Path, folder: Path, plan: Plan) -> None:
    """Write the tokenizer and the token streams, once; later runs read them back."""
    if (folder / "tokens.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    training, validation = split_books(read_books(archive, plan.skipped_books), plan.held_out_books)
    tokenizer = train_tokenizer((block for book in training for block in book.blocks), plan.vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    arrays: dict[str, np.ndarray] = {}
    for split, books in (("training", training), ("validation", validation)):
        chats = encode(tokenizer, [chat for book in books for chat in cut_conversations(book, ChatMix(plan.seed))])
        arrays[f"{split}_books"] = encode_books(tokenizer, books)
        arrays[f"{split}_chats"] = np.concatenate(chats)
        arrays[f"{split}_chat_starts"] = np.cumsum([0] + [len(chat) for chat in chats[:-1]]).astype(np.int64)
    arrays["validation_bytes"] = np.array([sum(len(book.text.encode()) for book in validation)])
    np.savez(folder / "tokens.npz", **arrays)


@dataclass(frozen=True)
class Dataset:
    """The token streams on the training device."""

    tokenizer: Tokenizer
    books: Tensor
    chats: Tensor
    chat_starts: Tensor
    validation: dict[str, Tensor]
    validation_bytes: int
    seed: int

    @classmethod
    def load(cls, folder: Path, seed: int, device: torch.device) -> "Dataset":
        with np.load(folder / "tokens.npz") as arrays:
            tensors = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in arrays.files}
        streams = {name: tensor.to(torch.int32).to(device) for name, tensor in tensors.items()}
        return cls(
            tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
            books=streams["training_books"],
            chats=streams["training_chats"],
            chat_starts=tensors["training_chat_starts"],
            validation={"books": streams["validation_books"], "chats": streams["validation_chats"]},
            validation_bytes=int(tensors["validation_bytes"]),
            seed=seed,
        )

    def batch(self, step: int, rows: int, length: int, chat_share: float) -> tuple[Tensor, Tensor]:
        """Return inputs and targets: rows of books from anywhere, and rows of chats from where a chat begins."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        chat_rows = round(rows * chat_share)
        anywhere = torch.randint(len(self.books) - length, (rows - chat_rows,), generator=rng)
        starts = self.chat_starts[: int(torch.searchsorted(self.chat_starts, len(self.chats) - length - 1))]
        chosen = starts[torch.randint(len(starts), (chat_rows,), generator=rng)]
        window = torch.arange(length + 1, device=self.books.device)
        rows_of_books = self.books[anywhere.to(window.device, non_blocking=True)[:, None] + window]
        rows_of_chats = self.chats[chosen.to(window.device, non_blocking=True)[:, None] + window]
        tokens = torch.cat([rows_of_books, rows_of_chats]).long()
        return tokens[:, :-1], tokens[:, 1:]

    def validation_windows(self, split: str, length: int, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Cut the held-out stream into windows side by side; the last one is padded with ignored targets."""
        stream = self.validation[split].long()
        count = -(-(len(stream) - 1) // length)
        inputs = torch.zeros(count * length, dtype=torch.long, device=stream.device)
        targets = torch.full_like(inputs, _IGNORED)
        inputs[: len(stream) - 1], targets[: len(stream) - 1] = stream[:-1], stream[1:]
        return list(zip(inputs.view(count, length).split(rows), targets.view(count, length).split(rows), strict=True))
