"""The shards with webdataset alone, nothing of gpt2wds imported: blocks of tokens → sequences → batches.

    python examples/stock_webdataset.py demo/plays

A shard is a `.tar.zst` with one `.tokens.npy` per sample: 65,536 tokens and the one that follows, uint16. Document
boundaries are token 50256. The order here is webdataset's own, not the global order of gpt2wds. Needs the command zstd.
"""

import argparse
import glob
import io
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import webdataset

END_OF_TEXT, BLOCK_TOKENS = 50256, 65_536

parser = argparse.ArgumentParser()
parser.add_argument("data", help="dataset directory that gpt2wds-shard made")
parser.add_argument("--split", choices=("train", "val"), default="train")
parser.add_argument("--seq-len", type=int, default=128)
parser.add_argument("--batch", type=int, default=8)
args = parser.parse_args()
blocks = documents = 0


def sequences(samples: Iterable[dict]) -> Iterator[np.ndarray]:
    """(seq_len + 1,) uint16: a sequence's inputs and, one further, its targets."""
    global blocks, documents
    for sample in samples:
        # Not webdataset's .decode(), which would also run what somebody pickled.
        tokens = np.load(io.BytesIO(sample["tokens.npy"]), allow_pickle=False)
        blocks += 1
        documents += int((tokens[:BLOCK_TOKENS] == END_OF_TEXT).sum())
        for start in range(0, len(tokens) - args.seq_len, args.seq_len):
            yield tokens[start : start + args.seq_len + 1]


urls = [f"pipe:zstd -dcq '{path}'" for path in sorted(glob.glob(f"{args.data}/{args.split}-*.tar.zst"))]
if not urls:
    sys.exit(f"{args.data}: expected {args.split}-*.tar.zst, got none")
source = webdataset.WebDataset(urls, shardshuffle=100, nodesplitter=webdataset.split_by_node, empty_check=False)
batches = source.compose(sequences).shuffle(1000).batched(args.batch, collation_fn=np.stack)
count = 0
for batch in batches:
    if not count:
        print(f"first batch: {batch.shape} {batch.dtype}")
    count += len(batch)
print(f"{len(urls)} shards, {blocks} blocks, {documents} documents, {count} sequences of {args.seq_len} tokens")
