"""A training loop of your own over gpt2wds's steps. Stopped at any moment, it goes on where it was, on any ranks.

python examples/own_loop.py demo/plays
torchrun --nproc-per-node=2 examples/own_loop.py demo/plays
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from gpt2wds import Dataset, Error, StepBatches


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(50257, 32), nn.GRU(32, 32, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.gru(self.embedding(tokens))[0] @ self.embedding.weight.T  # (B, T, 50257)


parser = argparse.ArgumentParser()
parser.add_argument("data", help="dataset directory that gpt2wds-shard made")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--checkpoint", default="own_loop.pt")
args = parser.parse_args()
rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
if ranks > 1:
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
torch.manual_seed(1)  # the same weights on every rank
model = Model().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
try:
    batches = StepBatches(Dataset(args.data), seq_len=64, sequences_per_step=8, seed=1337, rank=rank, world_size=ranks)
    parts, saved = {"model": model, "optimizer": optimizer, "batches": batches}, {"step": 0}
    if os.path.exists(args.checkpoint):
        saved = torch.load(args.checkpoint, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for step, sequences in zip(range(saved["step"] + 1, args.steps + 1), batches, strict=False):
        tokens = torch.from_numpy(sequences.astype("int64")).to(device)  # (8 / ranks, 65)
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / (8 * 64)
        optimizer.zero_grad()
        loss.backward()
        for value in [loss.detach(), *(p.grad for p in model.parameters())] if ranks > 1 else []:
            dist.all_reduce(value)  # each rank's is its share of the step's mean: they add up
        optimizer.step()
        if rank == 0:
            print(f"step {step}: loss {loss.item():.6f}", flush=True)
            saved = {"step": step} | {name: part.state_dict() for name, part in parts.items()}
            torch.save(saved, f"{args.checkpoint}.new")
            os.replace(f"{args.checkpoint}.new", args.checkpoint)
except Error as error:  # what the user can mend is one line
    raise SystemExit(f"error: {error}") from None
if ranks > 1:
    dist.destroy_process_group()
